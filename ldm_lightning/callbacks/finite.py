"""Steps whose loss or gradient is not finite are skipped, counted and, if they do not stop, end the run."""

from __future__ import annotations

import logging
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor
from torch.optim import Optimizer

from ldm_lightning.errors import UserError

__all__ = ["SkipNonFinite"]

log = logging.getLogger(__name__)


class SkipNonFinite(pl.Callback):
    """Leaves the weights as they are when a step's gradient holds an infinity or a NaN.

    A loss that is not finite is made to have such a gradient, which DDP sums over the processes like any other: all
    skip the same step without a word between them. Costs one wait for the device in a step.

    In 16-bit training the gradient scaler finds its scale by such steps; it recovers within a few of them.

    Args:
        limit: steps skipped in a row that end the run.
    """

    def __init__(self, limit: int = 20) -> None:
        if limit < 1:
            raise UserError(f"callbacks.finite.limit={limit} must be at least 1")
        self.limit = limit
        self.skipped = 0
        self.in_a_row = 0

    def on_before_backward(self, trainer: pl.Trainer, pl_module: pl.LightningModule, loss: Tensor) -> None:
        """Let a loss that is not finite spoil its gradient, which else might be finite by chance."""
        if loss.requires_grad:
            value = loss.detach()
            loss.register_hook(lambda gradient: torch.where(value.isfinite(), gradient, torch.nan))

    def on_before_optimizer_step(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, optimizer: Optimizer
    ) -> None:
        """Drop the gradients of a step that is not finite: an optimizer passes over parameters without one.

        Raises:
            UserError: too many such steps in a row.
        """
        parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
        if bool(torch.stack(torch._foreach_norm(gradients)).isfinite().all()):
            self.in_a_row = 0
        else:
            self.skipped, self.in_a_row = self.skipped + 1, self.in_a_row + 1
            for parameter in parameters:
                parameter.grad = None
            log.warning("step %d skipped: its loss or gradient is not finite", trainer.global_step)
            if self.in_a_row >= self.limit:
                raise UserError(
                    f"training diverged: loss or gradient not finite in {self.in_a_row} steps in a row, up to step "
                    f"{trainer.global_step}: lower optim.lr, check the pictures, or set trainer.precision=32-true; a "
                    "checkpoint from before is kept"
                )
        if (trainer.global_step + 1) % trainer.log_every_n_steps == 0:  # type: ignore[attr-defined]
            pl_module.log("train/skipped", float(self.skipped))

    def state_dict(self) -> dict[str, Any]:
        """How many were skipped."""
        return {"skipped": self.skipped, "in_a_row": self.in_a_row}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the count."""
        self.skipped, self.in_a_row = state_dict["skipped"], state_dict["in_a_row"]
