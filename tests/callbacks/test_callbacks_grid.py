"""Grids show every picture once, where it belongs."""

from __future__ import annotations

import io

import numpy as np
import torch
from PIL import Image

from ldm_lightning.callbacks.picture_grid import enlarged, grid, png, rows_of, to_uint8


def test_bytes_and_grey() -> None:
    pictures = torch.tensor([-1.0, 0.0, 1.0, 3.0]).view(4, 1, 1, 1)
    assert to_uint8(pictures)[:, 0, 0].tolist() == [[0] * 3, [128] * 3, [255] * 3, [255] * 3]


def test_tiles_lie_row_by_row() -> None:
    pictures = torch.linspace(-1, 1, 5).view(5, 1, 1, 1).expand(5, 3, 2, 4)
    sheet = grid(pictures, columns=3, gap=1)
    assert sheet.shape == (2 * 3 + 1, 3 * 5 + 1, 3)
    for number, value in enumerate([0, 64, 128, 191, 255]):
        row, column = divmod(number, 3)
        assert (sheet[1 + 3 * row : 3 + 3 * row, 1 + 5 * column : 5 + 5 * column] == value).all()
    assert (sheet[4:6, 11:15] == 255).all()  # nothing where no picture is


def test_rows_of_several_tensors_alternate() -> None:
    dark, bright = torch.full((4, 1, 8, 8), -1.0), torch.full((4, 1, 8, 8), 0.0)
    sheet = grid(rows_of((dark, bright), columns=2), columns=2)
    assert np.asarray(Image.open(io.BytesIO(png(sheet)))).tolist() == sheet.tolist()
    assert [int(sheet[2 + 10 * row + 4, 6, 0]) for row in range(4)] == [0, 128, 0, 128]


def test_an_incomplete_last_row() -> None:
    first, second = torch.full((3, 1, 8, 8), -1.0), torch.full((3, 1, 8, 8), 0.0)
    sheet = grid(rows_of((first, second), columns=2), columns=2)
    values = [[int(sheet[2 + 10 * row + 4, 2 + 10 * column + 4, 0]) for column in range(2)] for row in range(4)]
    assert values == [[0, 0], [128, 128], [0, 255], [128, 255]]


def test_small_sheets_are_enlarged_by_a_whole_factor() -> None:
    sheet = grid(torch.linspace(-1, 1, 4).view(4, 1, 1, 1).expand(4, 3, 8, 8), columns=2)
    seen = enlarged(sheet, smallest=65)
    assert seen.shape == (66, 66, 3)
    assert (seen[::3, 1::3] == sheet).all()
    assert (enlarged(sheet, smallest=10) == sheet).all()
