"""Taking up a run where its checkpoint lies: behind an optimizer step, but before what belongs to that step."""

from __future__ import annotations

from typing import Any

import pytorch_lightning as pl
import torch

from ldm_lightning.loggers.csv_log import CsvLogger

__all__ = ["Resumption"]


class Resumption(pl.Callback):
    """Does what a checkpoint's step still owed when the run was killed, before the next step.

    A checkpoint at the end of a step is written before the step's values are logged, and before the validation where
    one is due. It holds those values and that fact, so that a run that was killed then, or stopped by a signal, which
    leaves the validation out, goes on as if it had not been: it logs, and validates. Checkpoints from before there was
    this callback hold neither, and nothing is owed.

    To be the first of the callbacks: a stop by signal is decided after it.
    """

    def __init__(self) -> None:
        self._open = False  # between the end of a batch and all that belongs to it
        self._due = False
        self._metrics: dict[str, float] = {}
        self._owed: dict[str, Any] = {"values": {}, "logged": False, "validation": False}

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Come before the training loop.

        No hook does: the state is restored after ``on_fit_start``, and where no step is left to train,
        ``on_train_start`` is never called.
        """
        self._trainer = trainer
        train = trainer.fit_loop.run

        def run() -> None:
            self._take_up(trainer)
            train()

        trainer.fit_loop.run = run  # type: ignore[method-assign]

    def on_train_batch_end(self, trainer: pl.Trainer, *args: Any) -> None:
        """The batch is done, its logging and validation are not."""
        self._open, self._due = True, _validation_falls_here(trainer)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Nothing is owed any more."""
        self._open = False

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Nor here, when no validation was due."""
        self._open = False

    def state_dict(self) -> dict[str, Any]:
        """What is owed, and the last values logged, which an export reports."""
        trainer, owed = self._trainer, {"values": {}, "logged": False, "validation": False}
        if self._open:
            values = trainer._logger_connector.metrics["log"]
            # At a stop Lightning logs in any step, which then are the values of an earlier one.
            logged = (trainer.fit_loop.epoch_loop._batches_that_stepped + 1) % trainer.log_every_n_steps == 0  # type: ignore[attr-defined]
            due = self._due or _validation_falls_here(trainer)  # a run out of time validates once more
            owed = {"values": _plain(values), "logged": logged, "validation": due}
        return {"metrics": _plain(trainer.callback_metrics), "owed": owed}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore both."""
        self._metrics, self._owed = state_dict["metrics"], state_dict["owed"]

    def _take_up(self, trainer: pl.Trainer) -> None:
        """Rewind the metrics, pay what is owed; all ranks do, since they validate together."""
        trainer.fit_loop.setup_data()
        self._log(trainer)
        restored = {name: torch.tensor(value, dtype=torch.float64) for name, value in self._metrics.items()}
        trainer._logger_connector._callback_metrics.update(restored)
        if self._owed["validation"] and trainer.enable_validation:
            _validate(trainer)
        if trainer.fit_loop.restarting:
            _forget_validation(trainer)

    def _log(self, trainer: pl.Trainer) -> None:
        """Bring ``metrics.csv`` to the end of the last step; other loggers cannot take back what they have."""
        owed, step = self._owed, trainer.global_step
        for logger in trainer.loggers:
            if isinstance(logger, CsvLogger):
                if owed["validation"]:  # all of that step: no other validation can have been within it
                    logger.rewind(step - 1)
                else:
                    logger.rewind(step, owed["values"])
                if owed["logged"] and owed["values"]:
                    logger.log_metrics({**owed["values"], "epoch": trainer.current_epoch}, step - 1)


def _plain(metrics: Any) -> dict[str, float]:
    return {name: float(value) for name, value in metrics.items()}


def _validation_falls_here(trainer: pl.Trainer) -> bool:
    """Whether Lightning will validate after the batch in hand."""
    loop = trainer.fit_loop
    assert loop._data_fetcher is not None
    return loop.epoch_loop._should_check_val_fx(loop._data_fetcher)


def _validate(trainer: pl.Trainer) -> None:
    """Validate as Lightning's training loop does after a batch."""
    loop = trainer.fit_loop.epoch_loop
    loop.batch_progress.increment_completed()  # what a checkpoint after the validation is to say
    loop.val_loop.restarting = False  # it begins anew
    trainer.validating = True
    loop.val_loop.run()
    trainer.training = True
    loop.val_loop._has_run = False  # as if restored from that checkpoint


def _forget_validation(trainer: pl.Trainer) -> None:
    """Let Lightning see a checkpoint after a validation as one before, when no validation falls there any more.

    It takes the validation's place in its own schedule for granted, and would count one step too few from here on, when
    the interval was changed meanwhile or the validation was that of a run out of time.
    """
    progress = trainer.fit_loop.epoch_loop.batch_progress
    if progress.current.completed == progress.current.ready and not _validation_falls_here(trainer):
        for tracker in (progress.total, progress.current):
            tracker.completed -= 1
