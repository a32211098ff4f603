"""Export: the trained model as an artifact that other commands read."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytorch_lightning as pl

from ldm_lightning.artifact import write_artifact
from ldm_lightning.callbacks.ema import Ema
from ldm_lightning.callbacks.interruption import interrupted
from ldm_lightning.loggers.media import log_folder

__all__ = ["Export"]


class Export(pl.Callback):
    """Writes averaged weights, configuration and last metrics when training ends.

    Args:
        folder: the artifact folder.
        config: the resolved configuration, plain values.
    """

    def __init__(self, folder: str | Path, config: Mapping[str, Any]) -> None:
        self.folder = Path(folder)
        self.config = config

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Write the artifact on the first rank and hand it to the loggers."""
        if interrupted(trainer) or not trainer.is_global_zero:
            return
        ema = next((callback for callback in trainer.callbacks if isinstance(callback, Ema)), None)  # type: ignore[attr-defined]
        with ema.averaged(pl_module) if ema else nullcontext():
            kind, weights, details = pl_module.artifact()  # type: ignore[operator]
            metrics = {name: float(value) for name, value in trainer.callback_metrics.items()}
            facts = {
                "config": self.config,
                "step": trainer.global_step,
                "metrics": metrics,
            }
            write_artifact(self.folder, kind, weights, {**facts, **details})
        for logger in trainer.loggers:
            log_folder(
                logger, self.folder, name=self.folder.parent.name, kind=kind, metadata={"step": trainer.global_step}
            )
