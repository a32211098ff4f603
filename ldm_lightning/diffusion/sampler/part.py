"""A part of the path: sampling may start from latents that are not pure noise, and stop before they are clean."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ldm_lightning.errors import UserError

__all__ = ["WHOLE", "Part"]

_SAME = 1e-6  # times that a network hardly tells apart, and a multistep method should not walk between


@dataclass(frozen=True)
class Part:
    """From ``start`` down to ``stop``, by those steps of the whole path that lie between.

    So a half costs about half the evaluations, and where a part ends on the grid the next goes on with the same steps.
    Methods that remember earlier steps begin anew with each part.

    Attributes:
        start: time of the latents that a sampler is given: a draw from ``path.prior`` at 1, below it what
            ``path.corrupt(z0, t, noise)`` makes of clean latents, or another part has left.
        stop: time of the latents that it answers; 0 clean.

    Raises:
        UserError: these are no times, or the wrong way round.
    """

    start: float = 1.0
    stop: float = 0.0

    def __post_init__(self) -> None:
        if not 0 <= self.stop < self.start <= 1:
            raise UserError(f"sampling from start={self.start} to stop={self.stop}: set 0 <= stop < start <= 1")

    def of(self, times: Tensor) -> Tensor:
        """Those of the falling ``times`` of a whole path that lie in this part, and its ends."""
        if self.start < 1:
            times = torch.cat([times.new_tensor([self.start]), times[times < self.start - _SAME]])
        if self.stop > 0:
            times = torch.cat([times[times > self.stop + _SAME], times.new_tensor([self.stop])])
        return times

    def purpose(self, step: int) -> str:
        """Of the fresh noise in a step, counted from 0: parts that follow each other draw independent numbers."""
        return f"sampler/{step}" if self.start == 1 else f"sampler/{self.start}/{step}"


WHOLE = Part()
