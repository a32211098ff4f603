"""Rewinding the metrics file to where a resumed run goes on."""

from __future__ import annotations

import pytorch_lightning as pl

from ldm_lightning.loggers.csv_log import CsvLogger

__all__ = ["RewindMetrics"]


class RewindMetrics(pl.Callback):
    """Drops rows that were written after the checkpoint a run resumes from, so that they do not stand there twice."""

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Rewind; only now has Lightning restored the step."""
        for logger in trainer.loggers:
            if isinstance(logger, CsvLogger):
                logger.rewind(trainer.global_step)
