"""How large a stage is, as it is printed when a run starts."""

from __future__ import annotations

from collections.abc import Mapping

from torch import nn

from ldm_lightning.nn.count import parameters

__all__ = ["size"]


def size(module: nn.Module, operations: Mapping[str, int]) -> str:
    """Trainable parameters, and multiply-adds of one item by what they are for."""
    counts = ", ".join(f"{_short(count)} {what}" for what, count in operations.items())
    return f"{_short(parameters(module))} parameters; multiply-adds: {counts}"


def _short(count: int) -> str:
    power = min(4, max(0, (len(str(count)) - 1) // 3))
    return f"{count / 1000**power:.3g} {' kMGT'[power]}".strip()
