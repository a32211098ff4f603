"""When a training step is worth logging."""

from __future__ import annotations

import pytorch_lightning as pl

__all__ = ["log_due"]


def log_due(module: pl.LightningModule) -> bool:
    """Whether this step's values will be written: ``self.log`` costs milliseconds and a wait for the GPU."""
    every: int = module.trainer.log_every_n_steps  # type: ignore[attr-defined]
    return (module.global_step + 1) % every == 0
