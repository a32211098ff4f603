"""A trained run, ready to use: what notebooks and scripts start from, and the verbs as well."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any, Self

import torch
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from torch import Tensor

from ldm_lightning.artifact import Artifact, locate
from ldm_lightning.data.datamodule import DataModule
from ldm_lightning.diffusion.guidance import Guidance
from ldm_lightning.diffusion.sampler import Sampler
from ldm_lightning.errors import UserError, nearest
from ldm_lightning.experiment import build
from ldm_lightning.experiment.best import announce_stale
from ldm_lightning.experiment.compose import compose, conf_dir
from ldm_lightning.experiment.denoiser import load_weights
from ldm_lightning.experiment.guidance import guidance as build_guidance
from ldm_lightning.experiment.results import Reconstructions, Samples
from ldm_lightning.experiment.sampling import (
    autocast,
    choose_sampler,
    conditions_in_turn,
    describe,
    draw,
    encode_conditions,
)
from ldm_lightning.experiment.saved import read_artifact, read_manifest
from ldm_lightning.experiment.stages import stage_of
from ldm_lightning.experiment.trust import trusting
from ldm_lightning.latent.frozen import FrozenFirstStage
from ldm_lightning.rng import Streams
from ldm_lightning.training.first_stage import FirstStage
from ldm_lightning.training.latent_diffusion import LatentDiffusion

__all__ = [
    "TrainedFirstStage",
    "TrainedLatentDiffusion",
    "default_device",
    "load",
    "load_first_stage",
    "load_latent_diffusion",
    "without_judges",
]


def default_device() -> torch.device:
    """Where a trained model runs: the first GPU, else the processor."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


@dataclass(frozen=True)
class TrainedFirstStage:
    """A trained first stage.

    Attributes:
        module: with its trained weights, in eval mode.
        artifact: what its run exported.
        config: the configuration it was trained with.
    """

    module: FirstStage
    artifact: Artifact
    config: DictConfig

    @property
    def device(self) -> torch.device:
        """Where it runs."""
        return self.module.device

    @cached_property
    def latents(self) -> FrozenFirstStage:
        """The same first stage as a second stage sees it: items to and from standardized latents."""
        autoencoder = self.module.autoencoder
        frozen = FrozenFirstStage(autoencoder, autoencoder.bottleneck.scale(self.artifact.manifest["statistics"]))
        return frozen.to(self.device)

    def to(self, device: torch.device | str) -> Self:
        """Move it there; returns itself."""
        self.module.to(device)
        self.latents.to(device)
        return self

    def encode(self, x: Tensor, seed: int | None = None) -> Tensor:
        """Standardized latents (B, c, *space) of items (B, C, *space) in [-1, 1].

        Args:
            x: the items.
            seed: of a draw from the posterior; its mode by default.
        """
        return _encode(self.latents, x.to(self.device), seed)

    def decode(self, z: Tensor) -> Tensor:
        """Items (B, C, *space) in [-1, 1] of standardized latents (B, c, *space)."""
        return self.latents.decode(z.to(self.device))

    def reconstruct(self, x: Tensor) -> Reconstructions:
        """Items (B, C, *space) in [-1, 1] through the posterior's mode and back."""
        return _reconstruct(self.latents, x.to(self.device))

    def data(self, root: str | Path | None = None) -> DataModule:
        """The data that it was trained on; ``root`` tells where their files lie now, if they have moved."""
        return _data(self.config, root)


@dataclass(frozen=True)
class TrainedLatentDiffusion:
    """A trained second stage, with the first stage it was exported with.

    Attributes:
        module: with its trained weights, in eval mode.
        artifact: what its run exported.
        config: the configuration it was trained with; ``config.guidance`` as it is guided now.
    """

    module: LatentDiffusion
    artifact: Artifact
    config: DictConfig

    @property
    def device(self) -> torch.device:
        """Where it runs."""
        return self.module.device

    @property
    def latents(self) -> FrozenFirstStage:
        """The first stage: items to and from standardized latents."""
        return self.module.first_stage

    def to(self, device: torch.device | str) -> Self:
        """Move it there; returns itself."""
        self.module.to(device)
        self.module.first_stage.to(device)
        return self

    def sample(
        self,
        n: int,
        *,
        classes: Any = None,
        captions: Any = None,
        seed: int = 0,
        scale: float | None = None,
        steps: int | None = None,
        sampler: Sampler | str | None = None,
        guidance: Guidance | str | None = None,
        precision: str | None = None,
        batch_size: int = 100,
        progress: bool = False,
    ) -> Samples:
        """Draw ``n`` samples: the very ones that ``ldm sample`` draws with the same settings.

        A sample depends on the run, its number, its condition, the seed, sampler, steps and guidance, not on ``n`` or
        (up to the rounding of matrix products of other shapes) on ``batch_size``.

        Args:
            n: how many.
            classes: names or numbers, one or several, in turn; all classes by default.
            captions: texts, one or several, in turn, for a model that reads them.
            seed: of all noise.
            scale: of the guidance: 1 conditional, 0 unconditional, above 1 stronger; its own by default.
            steps: of the sampler; its own number by default.
            sampler: an object, or the name of one in ``conf/sampler``; the run's by default.
            guidance: an object, or the name of one in ``conf/guidance``; the run's by default.
            precision: "bf16-mixed" or "16-mixed" for the network's matrix products; "32-true" by default.
            batch_size: samples at once.
            progress: whether to show a bar.

        Raises:
            UserError: settings that cannot be; the message says which and what would do.
        """
        if n < 1 or batch_size < 1:
            raise UserError(f"n={n} and batch_size={batch_size} must be at least 1")
        chosen = choose_sampler(self.module, _preset("sampler", sampler), steps)
        asked = encode_conditions(self.config, classes, captions)
        numbers = torch.arange(n)
        batches = numbers.split(batch_size)
        with autocast(self.device, precision):
            conditions = partial(conditions_in_turn, asked)
            drawn = list(
                draw(
                    self.module,
                    batches,
                    conditions,
                    seed=seed,
                    sampler=chosen,
                    guidance=self._guidance(guidance, scale),
                    progress=progress,
                )
            )
        latents, items = (torch.cat(part) for part in zip(*drawn, strict=True))
        words = {name: [values[number % len(values)] for number in range(n)] for name, (values, _) in asked.items()}
        return Samples(items, latents, numbers, words, seed, describe(chosen))

    def _guidance(self, guidance: Guidance | str | None, scale: float | None) -> Guidance:
        """The run's, or another, of this strength."""
        if guidance is not None and not isinstance(guidance, str):
            if scale is not None:
                raise UserError(f"scale={scale} belongs to the guidance that is given beside it: set it there")
            return guidance
        if guidance is None and scale is None:
            return self.module.guidance
        config = self.config.copy()
        if guidance is not None:
            config.guidance = _preset_node("guidance", guidance)
        if scale is not None:
            config.guidance.scale = scale
        return build_guidance(config)

    def encode(self, x: Tensor, seed: int | None = None) -> Tensor:
        """Standardized latents (B, c, *space) of items (B, C, *space) in [-1, 1].

        Args:
            x: the items.
            seed: of a draw from the posterior; its mode by default.
        """
        return _encode(self.latents, x.to(self.device), seed)

    def decode(self, z: Tensor) -> Tensor:
        """Items (B, C, *space) in [-1, 1] of standardized latents (B, c, *space)."""
        return self.latents.decode(z.to(self.device))

    def reconstruct(self, x: Tensor) -> Reconstructions:
        """Items (B, C, *space) in [-1, 1] through the first stage and back."""
        return _reconstruct(self.latents, x.to(self.device))

    def data(self, root: str | Path | None = None) -> DataModule:
        """The data that it was trained on; ``root`` tells where their files lie now, if they have moved."""
        return _data(self.config, root)


def load(
    run: str | Path, *, device: torch.device | str | None = None, trust: str | Sequence[str] | None = None
) -> TrainedFirstStage | TrainedLatentDiffusion:
    """The model of a run, of whichever stage, from its weights as they were exported.

    Args:
        run: the run folder, or an artifact folder.
        device: where it is to run; the first GPU by default, else the processor.
        trust: packages of your own that the run may name; nothing else outside this package is ever called.

    Raises:
        UserError: there is no finished run, it is damaged, or names what is not trusted.
    """
    with trusting(trust):
        trained: TrainedFirstStage | TrainedLatentDiffusion = stage_of(read_manifest(run)["kind"]).load(run)
    return trained if device is None else trained.to(device)


def load_first_stage(run: str | Path) -> TrainedFirstStage:
    """The first stage trained in the folder ``run``.

    Raises:
        UserError: there is none, or it is damaged.
    """
    artifact = read_artifact(run, "first_stage")
    announce_stale(run)
    config = OmegaConf.create(artifact.manifest["config"])
    module = build.first_stage(without_judges(config))
    load_weights(module.autoencoder, artifact, run)
    return TrainedFirstStage(module.eval().to(default_device()), artifact, config)


def without_judges(config: DictConfig) -> DictConfig:
    """The configuration of a first stage without the networks that only training needs."""
    lean = config.copy()
    for key in ("adversary", "regularizers", "loss.perceptual"):
        OmegaConf.update(lean.first_stage, key, None, force_add=True)
    return lean


def load_latent_diffusion(
    run: str | Path, guidance: DictConfig | None = None, scale: float | None = None
) -> TrainedLatentDiffusion:
    """The second stage trained in the folder ``run``, with the first stage it was exported with.

    Args:
        run: the run folder.
        guidance: instead of the one it was trained with.
        scale: instead of that guidance's.

    Raises:
        UserError: there is none, or it is damaged, or cannot be guided like this.
    """
    artifact = read_artifact(run, "latent_diffusion")
    announce_stale(run)
    config = OmegaConf.create(artifact.manifest["config"])
    first_stage = None if build.stands_alone(config) else locate(Path(run)) / "first_stage"
    if first_stage is not None and not first_stage.is_dir():
        raise UserError(f"{first_stage} is lost: copy the first stage's export folder there")
    if first_stage is not None and read_manifest(first_stage)["sha256"] != config.derived.first_stage:
        raise UserError(f"{first_stage} is not the first stage that {run} was trained on: copy its export folder there")
    if guidance is not None:
        config.guidance = guidance
    if scale is not None:
        config.guidance.scale = scale
    module = build.latent_diffusion(config, first_stage)
    load_weights(module.denoiser.network, artifact, run)
    trained = TrainedLatentDiffusion(module.eval(), artifact, config)
    return trained.to(default_device())


def _encode(first_stage: FrozenFirstStage, x: Tensor, seed: int | None) -> Tensor:
    streams = None if seed is None else Streams(seed, torch.arange(len(x), device=x.device))
    return first_stage.encode(x, streams)


def _reconstruct(first_stage: FrozenFirstStage, x: Tensor) -> Reconstructions:
    z = first_stage.encode(x)
    return Reconstructions(first_stage.decode(z), x, z)


def _data(config: DictConfig, root: str | Path | None) -> DataModule:
    data = build.data_of_run(config, None if root is None else str(root))
    data.setup()
    return data


def _preset(group: str, given: Any) -> Any:
    """The object itself, or what ``conf/GROUP/NAME.yaml`` describes."""
    return instantiate(_preset_node(group, given)) if isinstance(given, str) else given


def _preset_node(group: str, name: str) -> DictConfig:
    options = sorted(file.stem for file in (conf_dir() / group).glob("*.yaml"))
    if name not in options:
        raise UserError(f"there is no {group}={name}{nearest(name, options)} (options: {', '.join(options)})")
    node = compose("sample", [f"{group}={name}"])[group]  # options may be made of others
    assert isinstance(node, DictConfig)
    return node
