"""Codes by number: bits packed into integers, and how well a book of codes is used."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric

__all__ = ["CodeUsage", "bits_per_group", "code_figures", "count_codes", "number_bits"]

_MOST_BITS = 16  # whose 65,536 combinations can still be counted one by one


def bits_per_group(bits: int) -> int:
    """The largest divisor of ``bits`` up to 16: so many neighbouring bits are counted as one code."""
    return next(size for size in range(min(bits, _MOST_BITS), 0, -1) if bits % size == 0)


def number_bits(bits: Tensor) -> Tensor:
    """Bits (B, C, *space) as int64 (B, C / size, *space): groups of ``size = bits_per_group(C)``, the lowest first."""
    size = bits_per_group(bits.shape[1])
    weights = 2 ** torch.arange(size, device=bits.device)
    groups = bits.long().unflatten(1, (-1, size)).movedim(2, -1)
    numbers: Tensor = (groups * weights).sum(-1)
    return numbers


def count_codes(numbers: Tensor, codes: int) -> Tensor:
    """(groups, codes) float64, how often each code occurs in ``numbers`` (B, groups, *space)."""
    groups = numbers.shape[1]
    own = numbers.transpose(0, 1).flatten(1) + codes * torch.arange(groups, device=numbers.device)[:, None]
    counts = torch.zeros(groups * codes, dtype=torch.float64, device=numbers.device)
    return counts.index_add_(0, own.flatten(), torch.ones_like(own.flatten(), dtype=torch.float64)).view(groups, codes)


def code_figures(counts: Tensor) -> dict[str, Tensor]:
    r"""Means over groups of

    * ``code_usage``: the part of all codes that occur at all;
    * ``code_perplexity``: :math:`\exp(-\sum_k p_k \log p_k)` with p the codes' frequencies, from 1 to K.

    Both grow with the number of latents that were counted.
    """
    frequency = counts / counts.sum(1, keepdim=True)
    perplexity = torch.special.entr(frequency).sum(1).exp()
    return {
        "code_usage": (counts > 0).double().mean().float(),
        "code_perplexity": perplexity.mean().float(),
    }


class CodeUsage(Metric):
    """:func:`code_figures` over all batches and ranks.

    Args:
        groups: codes at one place.
        codes: choices of each.
    """

    full_state_update = False
    counts: Tensor

    def __init__(self, groups: int, codes: int, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.codes = codes
        self.add_state("counts", torch.zeros(groups, codes, dtype=torch.float64), dist_reduce_fx="sum")

    def update(self, numbers: Tensor) -> None:
        """Count ``numbers`` (B, groups, *space)."""
        self.counts += count_codes(numbers, self.codes)

    def compute(self) -> dict[str, Tensor]:
        """The figures."""
        return code_figures(self.counts)
