"""Picture grids: many small pictures on one sheet."""

from __future__ import annotations

import io
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

__all__ = ["enlarged", "grid", "png", "rows_of", "tile", "to_uint8"]


def to_uint8(pictures: Tensor) -> NDArray[np.uint8]:
    """(N, C, H, W) in [-1, 1] -> (N, H, W, 3) bytes; one channel is shown as grey."""
    pixels = ((pictures.detach().float().cpu().clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)
    array: NDArray[np.uint8] = pixels.expand(-1, 3, -1, -1).permute(0, 2, 3, 1).numpy()
    return array


def tile(tiles: NDArray[np.uint8], columns: int, gap: int = 2) -> NDArray[np.uint8]:
    """Lay (N, H, W, 3) bytes out row by row, as one (height, width, 3) picture on a white ground."""
    count, height, width, _ = tiles.shape
    rows = -(-count // columns)
    sheet = np.full((rows * (height + gap) + gap, columns * (width + gap) + gap, 3), 255, dtype=np.uint8)
    for number, one in enumerate(tiles):
        top = gap + number // columns * (height + gap)
        left = gap + number % columns * (width + gap)
        sheet[top : top + height, left : left + width] = one
    return sheet


def grid(pictures: Tensor, columns: int, gap: int = 2) -> NDArray[np.uint8]:
    """:func:`tile` of pictures (N, C, H, W) in [-1, 1]."""
    return tile(to_uint8(pictures), columns, gap)


def enlarged(sheet: NDArray[np.uint8], smallest: int = 640) -> NDArray[np.uint8]:
    """Enlarge (height, width, 3) by a whole factor, so that it is at least about ``smallest`` pixels wide."""
    factor = max(1, round(smallest / sheet.shape[1]))
    return sheet.repeat(factor, axis=0).repeat(factor, axis=1)


def rows_of(blocks: Sequence[Tensor], columns: int) -> Tensor:
    """Several tensors (N, C, H, W) as one for a grid of ``columns``: a row of each in turn, filled up with white."""
    rows = zip(*(_whole_rows(block.cpu(), columns).split(columns) for block in blocks), strict=True)
    return torch.cat([torch.cat(row) for row in rows])


def _whole_rows(pictures: Tensor, columns: int) -> Tensor:
    white = pictures.new_ones(-len(pictures) % columns, *pictures.shape[1:])
    return torch.cat([pictures, white])


def png(picture: NDArray[np.uint8]) -> bytes:
    """(height, width, 3) bytes as the content of a PNG file."""
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, "PNG")
    return buffer.getvalue()
