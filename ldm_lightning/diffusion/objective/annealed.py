"""A law of times that changes over training."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor

from ldm_lightning.diffusion.objective.time_law import LogitNormal
from ldm_lightning.diffusion.schedule import Schedule
from ldm_lightning.errors import UserError
from ldm_lightning.precision import KeepsPrecision

__all__ = ["AnnealedLogitNormal"]


class AnnealedLogitNormal(KeepsPrecision):
    """logit(t) ~ N(mean, std^2), both straight lines between given values at given optimizer steps.

    Constant before the first step and after the last. In eval mode the last values hold, so that validation losses
    compare over time, and with those of a run that had them from the start. The step is a buffer, hence in checkpoints.

    Args:
        steps: rising optimizer steps, from 0 on.
        mean: at each of them.
        std: at each of them.

    Raises:
        UserError: the lists differ in length or are empty, steps do not rise, or a std is negative.
    """

    step: Tensor
    knots: Tensor
    values: Tensor

    def __init__(self, steps: Sequence[int], mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        if not len(steps) == len(mean) == len(std) > 0:
            raise UserError(
                f"objective.time_law: steps, mean and std have {len(steps)}, {len(mean)} and {len(std)} entries: "
                "give a mean and a std for every step"
            )
        if steps[0] < 0 or any(before >= after for before, after in pairwise(steps)):
            raise UserError(f"objective.time_law.steps={list(steps)} must rise, from 0 or later")
        if min(std) < 0:
            raise UserError(f"objective.time_law.std={list(std)} must not be negative")
        self.register_buffer("step", torch.zeros((), dtype=torch.int64))
        self.register_buffer("knots", torch.tensor(list(steps), dtype=torch.float64), persistent=False)
        values = torch.tensor([list(mean), list(std)], dtype=torch.float64)
        self.register_buffer("values", values, persistent=False)

    def parameters_now(self) -> tuple[Tensor, Tensor]:
        """Mean and std, () float64, at the present step; in eval mode the last."""
        if not self.training:
            return self.values[0, -1], self.values[1, -1]
        ramps = ((self.step - self.knots[:-1]) / self.knots.diff()).clamp(0, 1)
        mean, std = torch.addmv(self.values[:, 0], self.values.diff(), ramps)
        return mean, std

    def forward(self, uniform: Tensor, schedule: Schedule) -> Tensor:
        """Map (B,) uniforms in [0, 1) to (B,) times in (0, 1)."""
        mean, std = self.parameters_now()
        return LogitNormal(mean, std)(uniform, schedule)  # type: ignore[arg-type]  # numbers on the device

    def advance(self) -> None:
        """End of an optimizer step."""
        self.step += 1
