"""The stages that there are: all that commands need to know of one, in one place.

What a stage does lies in its ``home``, a module with the functions that :class:`Stage` calls. A stage of your own is a
:class:`Stage` in a module of yours, chosen by its dotted name, such as ``stage: my_package.JOINT`` in a yaml of the
group ``stage``; commands that read its runs need ``trust=my_package``.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ldm_lightning.errors import UserError, nearest
from ldm_lightning.experiment.locate import locate

if TYPE_CHECKING:  # torch takes seconds to import, and some verbs only ask for a name
    import pytorch_lightning as pl
    from omegaconf import DictConfig
    from torch import Tensor

    from ldm_lightning.data.datamodule import DataModule
    from ldm_lightning.diagnosis import Trial
    from ldm_lightning.experiment.measuring import Measured

__all__ = ["STAGES", "Stage", "recorded", "stage_of"]

_COMMON = ("stage", "data", "derived", "first_stage", "trainer")


@dataclass(frozen=True)
class Stage:
    """One stage of an experiment.

    Attributes:
        name: in configurations, and the kind of its artifacts.
        home: module with ``derive``, ``build``, ``load``, ``measure``, ``details``, ``operations`` and, if it can be
            tried, ``trial``, see the methods here; imported when first needed.
        learned: what the names of the parameters begin with that its artifact holds.
        recorded: keys that its recorded configuration always has, beside those of all stages.
        stands_on_first_stage: whether it trains in the latent space of another model, so that it may train on cached
            latents, and its artifact holds that model as well.
        exports_at_validation: whether its artifact costs little enough to be written at each validation.
        draws: whether samples can be drawn from it.
    """

    name: str
    home: str
    learned: str
    recorded: tuple[str, ...] = ()
    stands_on_first_stage: bool = False
    exports_at_validation: bool = False
    draws: bool = False

    def derive(self, config: DictConfig, data: DataModule) -> dict[str, Any]:
        """What the data and other models decide of its configuration, for ``config.derived``."""
        facts: dict[str, Any] = self._home.derive(config, data)
        return facts

    def build(self, config: DictConfig) -> pl.LightningModule:
        """The module in training. It also has ``artifact(pictures)``, see `LatentDiffusion.artifact`."""
        module: pl.LightningModule = self._home.build(config)
        return module

    def load(self, run: str | Path) -> Any:
        """The trained model of a run, ready to use, with a method ``to``."""
        return self._home.load(run)

    def measure(self, config: DictConfig, data: DataModule) -> Measured:
        """Figures of the model of ``config.run``, for ``ldm evaluate``."""
        measured: Measured = self._home.measure(config, data)
        return measured

    def details(
        self, config: DictConfig, weights: Mapping[str, Tensor], root: str | None, place: str
    ) -> dict[str, Any]:
        """What its artifact holds beside weights, once these, which are from ``place``, were seen to fit."""
        found: dict[str, Any] = self._home.details(config, weights, root, place)
        return found

    def operations(self, module: pl.LightningModule, data: DataModule) -> Mapping[str, int]:
        """Multiply-adds of one item, by what they are for."""
        counts: Mapping[str, int] = self._home.operations(module, data)
        return counts

    def trial(self, run: str | Path, data: DataModule) -> Trial | str:
        """What its exported model does, for ``ldm doctor``; or in words why it cannot be tried."""
        if not hasattr(self._home, "trial"):
            return f"{self.home} has no function trial"
        found: Trial | str = self._home.trial(run, data)
        return found

    @property
    def _home(self) -> Any:
        return import_module(self.home)


STAGES = {
    stage.name: stage
    for stage in (
        Stage("first_stage", home="ldm_lightning.experiment.first_stage", learned="autoencoder."),
        Stage(
            "latent_diffusion",
            home="ldm_lightning.experiment.latent_diffusion",
            learned="denoiser.network.",
            recorded=("denoiser", "condition", "path", "prediction", "objective", "sampler", "guidance"),
            stands_on_first_stage=True,
            exports_at_validation=True,
            draws=True,
        ),
    )
}


def stage_of(name: str) -> Stage:
    """The stage of this name, or of this dotted name.

    Raises:
        UserError: there is none.
    """
    if name in STAGES:
        return STAGES[name]
    made = locate(name) if "." in name else None
    if not isinstance(made, Stage):
        known = f"{', '.join(STAGES)}, nor the dotted name of a Stage of your own"
        raise UserError(f"stage={name} is none of {known}{nearest(name, STAGES)}")
    return made


def recorded(name: str) -> Iterable[str]:
    """Keys that the recorded configuration of a stage always has, as far as that is known without importing it."""
    return (*_COMMON, *(STAGES[name].recorded if name in STAGES else ()))
