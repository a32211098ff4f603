"""Means over all samples of all ranks."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from ldm_lightning.ranks import sum_over_ranks

__all__ = ["Means"]


class Means:
    """Named means, weighted by the number of samples behind each value; NaN stays NaN.

    Lightning's own ``self.log(..., on_epoch=True, sync_dist=True)`` weights ranks alike, so its mean is off as soon as
    the ranks of a validation set hold different numbers of samples.

    Attributes:
        samples: behind the means that were popped last, on all ranks together.
    """

    def __init__(self) -> None:
        self.samples = 0
        self._sums: dict[str, Tensor] = {}

    def update(self, values: Mapping[str, Tensor], samples: int) -> None:
        """Add scalar ``values``, each a mean over ``samples``."""
        for name, value in values.items():
            weighted = torch.stack([value.detach().double() * samples, value.new_tensor(samples).double()])
            self._sums[name] = self._sums[name] + weighted if name in self._sums else weighted

    def pop(self) -> dict[str, Tensor]:
        """The means by name, float32, over all ranks, which must all call this; and start afresh."""
        sums = {name: sum_over_ranks(pair) for name, pair in self._sums.items()}
        self._sums = {}
        self.samples = max((round(float(count)) for _, count in sums.values()), default=0)
        return {name: (total / count).float() for name, (total, count) in sums.items()}
