"""Terms of a loss: values and the weight that each has in the sum."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["Term", "total"]


@dataclass(frozen=True)
class Term:
    """One term of a loss.

    Attributes:
        value: a scalar, or (B,) of a sample each; the same in all terms of a loss.
        weight: in the sum.
    """

    value: Tensor
    weight: float | Tensor


def total(terms: Mapping[str, Term]) -> Tensor:
    """Weighted sum of the terms, shaped like their values."""
    return torch.stack([term.weight * term.value for term in terms.values()]).sum(0)
