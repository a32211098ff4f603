"""Word of a learning rate that a resumed run does not go on with."""

from __future__ import annotations

import logging
import math

import pytorch_lightning as pl
from torch.optim.lr_scheduler import LambdaLR

__all__ = ["AnnounceRate"]

log = logging.getLogger(__name__)

SAME = 0.01  # relative: of the course that a run had, the rate is restored exactly
SPENT = 0.1  # of the peak, which half a cosine falls below in its last fifth


class AnnounceRate(pl.Callback):
    """Warns, where a run goes on, if its length has changed the course of the learning rate.

    A schedule spans the whole run, so another length stretches or shortens its course: the rate jumps, or little of it
    is left. Nothing is changed here, so that a run with the length it had goes on bit for bit.
    """

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Compare the rate that was restored with the schedule's own at this step."""
        if not trainer.is_global_zero or not trainer.global_step:
            return
        for config in trainer.lr_scheduler_configs:
            if isinstance(config.scheduler, LambdaLR) and (line := _change(config.scheduler, trainer.global_step)):
                log.warning(line)


def _change(schedule: LambdaLR, step: int) -> str | None:
    """The warning, if there is anything to say."""
    peak, law = schedule.base_lrs[0], schedule.lr_lambdas[0]
    before, now = float(schedule.get_last_lr()[0]), peak * law(schedule.last_epoch)
    if math.isclose(now, before, rel_tol=SAME):
        return None
    said = f"the learning rate goes on at {now:.2g}, not at {before:.2g}, from step {step}"
    if now < SPENT * peak:
        said += f", little of optim.lr={peak:.2g}"
    return f"{said}: its course now spans another length; give the old trainer.max_steps, or train anew by name=..."
