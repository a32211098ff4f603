"""Means over all samples of all ranks."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor
from torchmetrics import MeanMetric

__all__ = ["Means"]


class Means:
    """Named means, weighted by the number of samples behind each value.

    Lightning's own ``self.log(..., on_epoch=True, sync_dist=True)`` weights ranks alike, so its mean is off as soon as
    the ranks of a validation set hold different numbers of samples.
    """

    def __init__(self) -> None:
        self._means: dict[str, MeanMetric] = {}

    def update(self, values: Mapping[str, Tensor], samples: int) -> None:
        """Add scalar ``values``, each a mean over ``samples``."""
        for name, value in values.items():
            mean = self._means.setdefault(name, MeanMetric().to(value.device))
            mean.update(value.detach(), weight=samples)

    def pop(self) -> dict[str, Tensor]:
        """The means by name, over all ranks, which must all call this; and start afresh."""
        means = {name: mean.compute() for name, mean in self._means.items()}
        self._means = {}
        return means
