"""Two sets of items, one of them real, in figures."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ldm_lightning.metrics.extractor import Extractor
from ldm_lightning.metrics.frechet import FrechetDistance

__all__ = ["Comparison"]


class Comparison:
    """Figures of how far other items are from real ones, from both sets in pieces of any size.

    Only sums of features are kept, whatever the number of items, and they are summed over all ranks: so `ldm evaluate`
    and the callback that measures during training get the same figures. ``compute`` is collective.

    Args:
        extractors: turn items (B, C, *space) in [-1, 1] into features; each item passes each of them once.
        keep_reference: the real items survive :meth:`reset`, for other items again and again.
    """

    def __init__(self, extractors: Sequence[Extractor], *, keep_reference: bool = False) -> None:
        self.metrics = [FrechetDistance(extractor, keep_reference=keep_reference) for extractor in extractors]

    def to(self, device: torch.device) -> Comparison:
        """Move extractors and sums there, and return itself."""
        self.metrics = [metric.to(device) for metric in self.metrics]
        return self

    @property
    def has_reference(self) -> bool:
        """Whether there are real items to compare with; nothing is to be compared if there are no metrics."""
        return all(bool(metric.real_count) for metric in self.metrics)

    def update(self, items: Tensor, *, real: bool) -> None:
        """Add items (B, C, *space) in [-1, 1] to one of the sets."""
        for metric in self.metrics:
            metric.update(items, real=real)

    def compute(self) -> dict[str, float]:
        """Figures by label, which tells the number of the other items; under DDP every rank must call this.

        Raises:
            UserError: a set has fewer than two items.
        """
        values = [float(metric.compute()) for metric in self.metrics]  # before the labels, which count all ranks' items
        return dict(zip((metric.label for metric in self.metrics), values, strict=True))

    def reset(self) -> None:
        """Forget the items, but with ``keep_reference`` only the others."""
        for metric in self.metrics:
            metric.reset()
