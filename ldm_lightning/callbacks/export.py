"""Export: the trained model as an artifact that other commands read."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
from torch import Tensor

from ldm_lightning.artifact import copy_artifact, write_artifact
from ldm_lightning.callbacks.ema import Ema
from ldm_lightning.data.batch import Batch
from ldm_lightning.loggers.media import log_folder

__all__ = ["Export", "ExportAtValidation", "write_model"]


class Export:
    """Writes averaged weights, configuration and last metrics of a stage, with the first stage it stands on.

    No callback, because it must also run when Lightning has nothing left to train: a run that was killed after its last
    step is finished by its export.

    Args:
        run: the run folder; the artifact lies in ``export``.
        config: the resolved configuration, plain values.
        pictures: gives this rank's share of the training pictures that a first stage measures its latents on.
        first_stage: folder of the first stage that this one stands on, if it does.
    """

    def __init__(
        self,
        run: Path,
        config: Mapping[str, Any],
        pictures: Callable[[], Iterable[Batch]],
        first_stage: Path | None = None,
    ) -> None:
        self.run, self.config, self.pictures, self.first_stage = run, config, pictures, first_stage
        self.folder = run / "export"

    def write(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Write what is trained so far; all ranks must call this, since they measure together."""
        ema = next((callback for callback in trainer.callbacks if isinstance(callback, Ema)), None)  # type: ignore[attr-defined]
        training, _ = pl_module.training, pl_module.eval()
        with ema.averaged(pl_module) if ema else nullcontext():
            weights, details = pl_module.artifact(self.pictures)  # type: ignore[operator]
            if trainer.is_global_zero:
                metrics = {name: float(value) for name, value in trainer.callback_metrics.items()}
                facts = {"config": self.config, "step": trainer.global_step, "metrics": metrics}
                kind = str(self.config["stage"])
                write_model(self.folder, kind, weights, {**facts, **details}, self.first_stage)
        pl_module.train(training)

    def publish(self, trainer: pl.Trainer) -> None:
        """Hand the finished artifact to the loggers."""
        for logger in trainer.loggers if trainer.is_global_zero else ():
            metadata = {"step": trainer.global_step}
            log_folder(logger, self.folder, self.run.name, str(self.config["stage"]), metadata)


def write_model(
    folder: Path, kind: str, weights: Mapping[str, Tensor], details: Mapping[str, Any], first_stage: Path | None
) -> None:
    """Write an artifact, and into it the first stage that it stands on, if there is one."""
    folder.mkdir(parents=True, exist_ok=True)
    if first_stage is not None and first_stage.is_dir():
        copy_artifact(first_stage, folder / "first_stage")
    write_artifact(folder, kind, weights, details)


class ExportAtValidation(pl.Callback):
    """Exports after every validation, so that a model can be sampled from while it trains.

    But for that of the last step, before whose checkpoints an export would call the run finished: its end exports.
    """

    def __init__(self, export: Export) -> None:
        self.export = export

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Write what the validation has seen: the average, if there is one; the end of training writes anyway."""
        if not trainer.sanity_checking and trainer.global_step != trainer.max_steps:
            self.export.write(trainer, pl_module)
