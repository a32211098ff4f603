"""Orderly stops: Ctrl-C, a cluster's SIGTERM and SIGUSR1 end training after the batch in hand."""

from __future__ import annotations

import signal
from types import FrameType
from typing import Any

import pytorch_lightning as pl

__all__ = ["Interruption", "interrupted"]

_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)


class Interruption(pl.Callback):
    """Stops all ranks at the same batch when any of them got a signal, so that the state is saved and nothing hangs.

    Raising out of a signal handler would leave other ranks waiting in a collective; here the handler only sets a flag,
    which ranks agree on after every batch. A second Ctrl-C stops at once.
    """

    def __init__(self) -> None:
        self.signal: int | None = None
        self._before: dict[int, Any] = {}

    def _note(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT and self.signal == signal.SIGINT:
            raise KeyboardInterrupt
        self.signal = number

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Take over the signals, after Lightning has set its own handlers."""
        self._before = {number: signal.signal(number, self._note) for number in _SIGNALS}

    def on_train_batch_end(self, trainer: pl.Trainer, *args: Any) -> None:
        """Agree with the other ranks whether to stop here."""
        if trainer.strategy.reduce_boolean_decision(self.signal is not None, all=False):
            self.signal = self.signal or signal.SIGTERM
            trainer.should_stop = True
            trainer.limit_val_batches = 0  # Lightning would validate once more before it stops

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Give the signals back."""
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before = {}


def interrupted(trainer: pl.Trainer) -> bool:
    """Whether training is stopping because of a signal: what may take long is then left to the resumed run."""
    callbacks: list[pl.Callback] = trainer.callbacks  # type: ignore[attr-defined]
    return any(isinstance(callback, Interruption) and callback.signal is not None for callback in callbacks)
