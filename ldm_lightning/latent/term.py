"""A term of a loss: a value and the weight it has in the sum."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["Term", "total"]


@dataclass(frozen=True)
class Term:
    """One term of a loss: a scalar and its weight in the sum."""

    value: Tensor
    weight: float | Tensor


def total(terms: dict[str, Term]) -> Tensor:
    """Weighted sum of the terms, a scalar."""
    return torch.stack([term.weight * term.value for term in terms.values()]).sum()
