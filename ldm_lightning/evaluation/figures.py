"""Figures by name, as they stand in tables and in ``evaluation/<name>.json``."""

from __future__ import annotations

from torch import Tensor

__all__ = ["Figures", "number"]

Figures = dict[str, dict[str, float]]
"""By a name that tells the number of items, such as ``psnr@1000``: the model's ``value``, and where there is one what
``real`` items come to."""


def number(value: float | Tensor, real: float | Tensor | None = None) -> dict[str, float]:
    """One entry of :data:`Figures`."""
    return {"value": float(value)} | ({} if real is None else {"real": float(real)})
