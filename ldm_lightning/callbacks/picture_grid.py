"""Picture grids: many small pictures on one sheet."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

__all__ = ["grid", "save_grid", "to_uint8"]


def to_uint8(pictures: Tensor) -> NDArray[np.uint8]:
    """(N, C, H, W) in [-1, 1] -> (N, H, W, 3) bytes; one channel is shown as grey."""
    pixels = ((pictures.detach().float().cpu().clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)
    array: NDArray[np.uint8] = pixels.expand(-1, 3, -1, -1).permute(0, 2, 3, 1).numpy()
    return array


def grid(pictures: Tensor, columns: int, gap: int = 2) -> NDArray[np.uint8]:
    """Tile (N, C, H, W) in [-1, 1], row by row, into one (height, width, 3) picture on a white ground."""
    tiles = to_uint8(pictures)
    count, height, width, _ = tiles.shape
    rows = -(-count // columns)
    sheet = np.full((rows * (height + gap) + gap, columns * (width + gap) + gap, 3), 255, dtype=np.uint8)
    for number, tile in enumerate(tiles):
        top = gap + number // columns * (height + gap)
        left = gap + number % columns * (width + gap)
        sheet[top : top + height, left : left + width] = tile
    return sheet


def _whole_rows(pictures: Tensor, columns: int) -> Tensor:
    """Fill the last row with white pictures."""
    white = pictures.new_ones(-len(pictures) % columns, *pictures.shape[1:])
    return torch.cat([pictures, white])


def save_grid(path: Path, pictures: Tensor | Sequence[Tensor], columns: int, smallest: int = 640) -> NDArray[np.uint8]:
    """Save a grid as PNG, enlarged by a whole factor so that it is at least about ``smallest`` pixels wide.

    Args:
        path: the file; its folder is made.
        pictures: (N, C, H, W) in [-1, 1], or several such tensors, interleaved in blocks of rows of ``columns``.
        columns: pictures per row.
        smallest: width under which the sheet is enlarged.

    Returns:
        The sheet as saved, (height, width, 3) bytes.
    """
    if not isinstance(pictures, Tensor):
        rows = zip(*(_whole_rows(block.cpu(), columns).split(columns) for block in pictures), strict=True)
        pictures = torch.cat([torch.cat(row) for row in rows])
    sheet = grid(pictures, columns)
    factor = max(1, round(smallest / sheet.shape[1]))
    sheet = sheet.repeat(factor, axis=0).repeat(factor, axis=1)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(sheet).save(path)
    return sheet
