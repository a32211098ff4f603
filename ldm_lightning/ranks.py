"""Sums and means over the processes of a training; all of them must call these. One process alone is its own sum."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["are_several", "mean_over_ranks", "sum_over_ranks"]


def are_several() -> bool:
    """Whether there are processes to talk to."""
    return torch.distributed.is_available() and torch.distributed.is_initialized()


def sum_over_ranks(value: Tensor) -> Tensor:
    """``value`` summed over all processes; a new tensor without gradient."""
    value = value.detach().clone()
    if are_several():
        torch.distributed.all_reduce(value)
    return value


def mean_over_ranks(value: Tensor) -> Tensor:
    """``value`` averaged over all processes; a new tensor without gradient."""
    total = sum_over_ranks(value)
    return total / torch.distributed.get_world_size() if are_several() else total
