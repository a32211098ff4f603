"""Buffers that a cast of the module leaves alone.

``module.bfloat16()``, ``.half()`` and ``.to(dtype)`` cast parameters, which is what one wants of a network, and every
buffer, which is not: a table of a thousand log-SNRs has neighbours that bfloat16 cannot tell apart, a moving average
that takes up a hundredth at each step stands still in it, and no later cast brings digits back.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Self

from torch import Tensor, nn

__all__ = ["KeepsPrecision"]


class KeepsPrecision(nn.Module):
    """A module whose own buffers keep their dtype: casts reach its parameters and its children, devices reach all."""

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        """What every cast and every move of a module goes through."""
        before = dict(self._buffers)
        super()._apply(fn, recurse)
        for name, buffer in before.items():
            moved = self._buffers[name]
            if buffer is not None and moved is not None and moved.dtype != buffer.dtype:
                self._buffers[name] = buffer.to(moved.device)
        return self
