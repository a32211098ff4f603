"""Latent statistics: measured once the first stage is trained, kept in its artifact."""

from __future__ import annotations

import pytorch_lightning as pl

from ldm_lightning.callbacks.interruption import interrupted

__all__ = ["MeasureLatents"]


class MeasureLatents(pl.Callback):
    """Measures mean and standard deviation of every latent channel over many training pictures, on all ranks.

    Args:
        pictures: how many pictures at most.
    """

    def __init__(self, pictures: int = 50_000) -> None:
        self.pictures = pictures

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Measure; must come before the export in the list of callbacks."""
        if interrupted(trainer):
            return
        training, _ = pl_module.training, pl_module.eval()
        pl_module.measure_latents(trainer.datamodule.loader("train", limit=self.pictures))  # type: ignore[operator, attr-defined]
        pl_module.train(training)
