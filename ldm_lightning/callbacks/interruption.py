"""Orderly stops: Ctrl-C, a cluster's SIGTERM and SIGUSR1 end training after the step in hand."""

from __future__ import annotations

import os
import signal
from types import FrameType
from typing import Any

import pytorch_lightning as pl

__all__ = ["Interruption"]

_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)
_EVERY = 10  # batches between two agreements of several ranks: each is a collective and a wait for the GPU


class Interruption(pl.Callback):
    """Stops all ranks at the same step when any of them got a signal, so that the state is saved and nothing hangs.

    Raising out of a signal handler would leave other ranks waiting in a collective; here the handler only sets a flag,
    which the ranks agree on between steps. A second Ctrl-C only says so; a third kills, without a save. After the last
    step a signal changes nothing any more: training is about to end anyway.

    Attributes:
        agreed: the signal by which training stopped; None while no stop is agreed on.
    """

    def __init__(self) -> None:
        self.agreed: int | None = None
        self._received: int | None = None
        self._presses = 0
        self._before: dict[int, Any] = {}

    def _note(self, number: int, frame: FrameType | None) -> None:
        self._received = number
        self._presses += number == signal.SIGINT
        if self._presses == 2:  # written past Python's buffers, which may be in the middle of something
            os.write(2, b"\nsaving after the step in hand, a moment; once more kills without saving\n")
        elif self._presses > 2:
            signal.signal(signal.SIGINT, signal.SIG_DFL)
            signal.raise_signal(signal.SIGINT)

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Take over the signals, after Lightning has set its own handlers."""
        if not self._before:
            self._before = {number: signal.signal(number, self._note) for number in _SIGNALS}

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Likewise: a resumed run may have a validation to catch up on before it trains."""
        self.on_train_start(trainer, pl_module)

    def on_train_batch_end(self, trainer: pl.Trainer, *args: Any) -> None:
        """Agree with the other ranks whether to stop here; never amid accumulated batches, whose sum is not saved."""
        if trainer.fit_loop._should_accumulate():
            return
        if trainer.world_size > 1 and trainer.fit_loop.epoch_loop.total_batch_idx % _EVERY:
            return
        if trainer.strategy.reduce_boolean_decision(self._received is not None, all=False):
            self.agreed = self._received or signal.SIGTERM
            trainer.should_stop = True
            trainer.limit_val_batches = 0  # Lightning would validate once more before it stops

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Give the signals back."""
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before = {}
