"""Export: the trained model as an artifact that other commands read."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterable, Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytorch_lightning as pl

from ldm_lightning.artifact import write_artifact
from ldm_lightning.callbacks.ema import Ema
from ldm_lightning.data.batch import Batch
from ldm_lightning.loggers.media import log_folder

__all__ = ["Export", "ExportAtValidation"]


class Export:
    """Writes averaged weights, configuration and last metrics of a stage, with the first stage it stands on.

    No callback, because it must also run when Lightning has nothing left to train: a run that was killed after its last
    step is finished by its export.

    Args:
        folder: the artifact folder.
        config: the resolved configuration, plain values.
        pictures: gives this rank's share of the training pictures that a first stage measures its latents on.
    """

    def __init__(self, folder: Path, config: Mapping[str, Any], pictures: Callable[[], Iterable[Batch]]) -> None:
        self.folder, self.config, self.pictures = folder, config, pictures

    def write(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Write what is trained so far; all ranks must call this, since they measure together."""
        ema = next((callback for callback in trainer.callbacks if isinstance(callback, Ema)), None)  # type: ignore[attr-defined]
        metrics = {name: float(value) for name, value in trainer.callback_metrics.items()}
        with ema.averaged(pl_module) if ema else nullcontext():
            self.save(pl_module, trainer.global_step, metrics)

    def save(self, pl_module: pl.LightningModule, step: int, metrics: Mapping[str, float]) -> None:
        """Write the weights that ``pl_module`` carries, those after ``step`` steps; all ranks must call this."""
        training, _ = pl_module.training, pl_module.eval()
        kind, weights, details = pl_module.artifact(self.pictures)  # type: ignore[operator]
        if pl_module.trainer.is_global_zero:
            first_stage, own = self.folder.parent / "first_stage", self.folder / "first_stage"
            if kind == "latent_diffusion" and first_stage.is_dir() and not own.is_dir():
                shutil.copytree(first_stage, own)
            facts = {"config": self.config, "step": step, "metrics": metrics}
            write_artifact(self.folder, kind, weights, {**facts, **details})
        pl_module.train(training)

    def publish(self, trainer: pl.Trainer) -> None:
        """Hand the finished artifact to the loggers."""
        for logger in trainer.loggers if trainer.is_global_zero else ():
            metadata = {"step": trainer.global_step}
            log_folder(logger, self.folder, self.folder.parent.name, str(self.config["stage"]), metadata)


class ExportAtValidation(pl.Callback):
    """Exports after every validation, so that a model can be sampled from while it trains."""

    def __init__(self, export: Export) -> None:
        self.export = export

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Write; the average has just been swapped out again."""
        if not trainer.sanity_checking:
            self.export.write(trainer, pl_module)
