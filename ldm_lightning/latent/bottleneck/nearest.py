"""The nearest vector of a book."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["nearest_codes"]

_DISTANCES = 2**26  # held at once


def nearest_codes(latents: Tensor, book: Tensor) -> tuple[Tensor, Tensor]:
    """Quantize latents.

    Args:
        latents: (B, C, *space), float32.
        book: (K, C).

    Returns:
        The nearest vectors of the book (B, C, *space), without a gradient to the latents, and their numbers
        (B, *space).
    """
    rows = latents.detach().movedim(1, -1)
    square = book.detach().square().sum(1)
    numbers = torch.cat(
        [
            (square - 2 * part @ book.detach().T).argmin(1)  # the latent's own square is the same for all
            for part in rows.flatten(0, -2).split(max(1, _DISTANCES // len(book)))
        ]
    ).view(rows.shape[:-1])
    return book[numbers].movedim(-1, 1), numbers
