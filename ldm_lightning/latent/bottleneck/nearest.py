"""The nearest vector of a book."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["nearest_codes"]

_DISTANCES = 2**25  # held at once


def nearest_codes(latents: Tensor, book: Tensor) -> tuple[Tensor, Tensor]:
    """Quantize latents.

    Squared distances are expanded, :math:`|e|^2 - 2 f e`, so that they are one product of matrices; the latent's own
    square is the same for all. Far from zero, or between codes much closer to each other than to the rest, this cancels
    nearly all digits of its terms: they are taken in float64, around the book's mean.

    Args:
        latents: (B, C, *space), float32.
        book: (K, C).

    Returns:
        The nearest vectors of the book (B, C, *space), without a gradient to the latents, and their numbers
        (B, *space).
    """
    rows, wide = latents.detach().movedim(1, -1), book.detach().double()
    centre = wide.mean(0)
    around = wide - centre
    square = around.square().sum(1)
    numbers = torch.cat(
        [
            torch.addmm(square, part - centre, around.T, alpha=-2).argmin(1)
            for part in rows.flatten(0, -2).split(max(1, _DISTANCES // len(book)))
        ]
    ).view(rows.shape[:-1])
    return book[numbers].movedim(-1, 1), numbers
