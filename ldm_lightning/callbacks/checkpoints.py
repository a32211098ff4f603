"""Checkpoints: the full training state, written so that a kill at any moment loses at most a few steps."""

from __future__ import annotations

import math
import os
import zipfile
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Checkpoint
from pytorch_lightning.plugins.io import TorchCheckpointIO

from ldm_lightning.errors import UserError, nearest

__all__ = ["BEST", "AtomicCheckpointIO", "Checkpoints", "intact", "latest"]

BEST = "best.ckpt"
LAST = "last.ckpt"
PREVIOUS = "previous-last.ckpt"


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes beside the target, flushes to disk, then renames; the last.ckpt before stays as previous-last.ckpt."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        """Write ``checkpoint`` to ``path``; a reader sees a whole file or none."""
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f".{path.name}.tmp")
        with temporary.open("wb") as file:
            torch.save(checkpoint, file)
            file.flush()
            os.fsync(file.fileno())
        if path.name == LAST and path.exists():
            path.replace(path.with_name(PREVIOUS))
        temporary.replace(path)
        folder = os.open(path.parent, os.O_RDONLY)
        os.fsync(folder)  # the rename itself must survive a power cut
        os.close(folder)


def intact(path: Path) -> bool:
    """Whether every record of a checkpoint file has its checksum right."""
    try:
        with zipfile.ZipFile(path) as archive:
            return archive.testzip() is None
    except (OSError, zipfile.BadZipFile):
        return False


def latest(folder: Path) -> Path | None:
    """The newest intact checkpoint to resume from: ``last.ckpt``, else the one before; None when there is none."""
    return next((folder / name for name in (LAST, PREVIOUS) if intact(folder / name)), None)


class Checkpoints(Checkpoint):
    """Keeps ``last.ckpt`` (with its predecessor) and ``best.ckpt``.

    Args:
        folder: where they go.
        every_n_steps: optimizer steps between two saves; every validation and the end of training save as well.
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
