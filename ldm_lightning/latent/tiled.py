"""Large pictures in tiles: memory is bounded by the tile, not by the picture.

Tiles overlap, and across an overlap one tile fades linearly into the next. A network that looks only around each pixel
gives there what it gives to the whole picture, so that away from the tiles' borders, by more than it sees, nothing
changes. What looks at the whole picture (attention, and the statistics of group normalization) sees a tile instead:
then tiles differ from the whole by as much as those differ, and the fading hides the seams.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import product

import torch
from torch import Tensor

from ldm_lightning.errors import UserError

__all__ = ["tile_starts", "tiled"]


def tile_starts(length: int, tile: int, stride: int) -> list[int]:
    """Where tiles of a side begin: every ``stride``, the last one flush with the end."""
    if length <= tile:
        return [0]
    return [*range(0, length - tile, stride), length - tile]


def tiled(function: Callable[[Tensor], Tensor], x: Tensor, tile: int, overlap: int, factor: float) -> Tensor:
    """``function`` of a picture, tile by tile.

    Args:
        function: (B, C, h, w) -> (B, D, h * factor, w * factor), such as one half of a codec.
        x: (B, C, H, W).
        tile: side of a tile, in elements of ``x``.
        overlap: of neighbouring tiles, in elements of ``x``; less than ``tile``.
        factor: of the size, above 1 for a decoder, below for an encoder, whose inverse divides H, W, tile and overlap.

    Returns:
        (B, D, H * factor, W * factor).

    Raises:
        UserError: tile or overlap are out of range.
    """
    grain = max(1, round(1 / factor))
    if not 0 <= overlap < tile or tile % grain or overlap % grain:
        raise UserError(
            f"tile={tile} and overlap={overlap} must be multiples of {grain}, and the overlap from 0 to below the tile"
        )
    height, width = x.shape[2:]
    if max(height, width) <= tile:
        return function(x)
    total: Tensor | None = None
    weights: Tensor | None = None
    stride = tile - overlap
    for top, left in product(tile_starts(height, tile, stride), tile_starts(width, tile, stride)):
        part = function(x[:, :, top : top + tile, left : left + tile])
        if total is None or weights is None:
            total = part.new_zeros(*part.shape[:2], round(height * factor), round(width * factor))
            weights = part.new_zeros(total.shape[2:])
        rows, columns = (
            _fade(round(side * factor), round(overlap * factor), before=start > 0, behind=start + side < length)
            for start, side, length in ((top, min(tile, height), height), (left, min(tile, width), width))
        )
        weight = (rows[:, None] * columns).to(part)
        place = _place(top, left, part.shape[2:], factor)
        total[:, :, place[0], place[1]] += weight * part
        weights[place] += weight
    assert total is not None
    assert weights is not None
    return total / weights


def _fade(size: int, ramp: int, *, before: bool, behind: bool) -> Tensor:
    """(size,) weights along a tile: 1, but rising over a tile before it and falling over one behind."""
    weight = torch.ones(size)
    rise = (torch.arange(ramp) + 0.5) / max(1, ramp)
    if before:
        weight[:ramp] *= rise
    if behind:
        weight[size - ramp :] *= rise.flip(0)
    return weight


def _place(top: int, left: int, size: Sequence[int], factor: float) -> tuple[slice, slice]:
    first, second = round(top * factor), round(left * factor)
    return slice(first, first + size[0]), slice(second, second + size[1])
