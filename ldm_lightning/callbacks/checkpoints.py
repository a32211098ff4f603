"""Checkpoints: the full training state, written so that a kill at any moment loses at most a few steps."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.callbacks import Checkpoint

from ldm_lightning.callbacks.checkpoint_files import BEST, LAST
from ldm_lightning.errors import UserError, nearest

__all__ = ["Checkpoints"]


class Checkpoints(Checkpoint):
    """Keeps ``last.ckpt`` (with its predecessor) and ``best.ckpt``.

    Args:
        folder: where they go.
        every_n_steps: optimizer steps between two saves; every validation and the end of training save as well.
            Never amid accumulated batches, as happens at the end of an epoch that they do not divide.
        monitor: the logged value that decides which is best.
        mode: "min" or "max".
    """

    def __init__(self, folder: str, every_n_steps: int = 1000, monitor: str = "val/loss", mode: str = "min") -> None:
        self.folder = Path(folder)
        self.every_n_steps = every_n_steps
        self.monitor = monitor
        if mode not in ("min", "max"):
            raise UserError(f"callbacks.checkpoints.mode={mode} is neither min nor max")
        if every_n_steps < 1:
            raise UserError(f"callbacks.checkpoints.every_n_steps={every_n_steps} must be at least 1")
        self.sign = 1.0 if mode == "min" else -1.0
        self.best = math.inf
        self.saved_step = 0

    def _save_last(self, trainer: pl.Trainer) -> None:
        self.saved_step = trainer.global_step
        trainer.save_checkpoint(self.folder / LAST, weights_only=False)

    def on_train_batch_end(self, trainer: pl.Trainer, *args: Any) -> None:
        """Save every so many optimizer steps, and where training stops.

        At the stop it must be now: after this hook Lightning counts the epoch as finished, even in its middle.
        """
        step = trainer.global_step
        if trainer.fit_loop._should_accumulate():
            return  # the gradients accumulated so far are not part of a checkpoint
        due = step % self.every_n_steps == 0 or trainer.should_stop or step == trainer.max_steps
        if due and step != self.saved_step:
            self._save_last(trainer)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Save, and keep a copy when the monitored value is the best so far."""
        if trainer.sanity_checking or trainer.state.fn != "fit":
            return
        if self.monitor not in trainer.callback_metrics:
            mend = nearest(self.monitor, trainer.callback_metrics)
            raise UserError(f"callbacks.checkpoints.monitor={self.monitor} is not logged{mend}")
        value = self.sign * float(trainer.callback_metrics[self.monitor])
        if value < self.best:
            self.best = value
            trainer.save_checkpoint(self.folder / BEST, weights_only=False)
        if not trainer.fit_loop._should_accumulate():
            self._save_last(trainer)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Save the end, unless the last save was there already."""
        if trainer.global_step != self.saved_step:
            self._save_last(trainer)

    def state_dict(self) -> dict[str, Any]:
        """The best value so far."""
        return {"best": self.best}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the best value so far."""
        self.best = state_dict["best"]
