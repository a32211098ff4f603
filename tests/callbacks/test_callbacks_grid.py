"""Grids show every picture once, where it belongs."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from PIL import Image

from ldm_lightning.callbacks.picture_grid import grid, save_grid, to_uint8


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


def test_rows_of_several_tensors_alternate(tmp_path: Path) -> None:
    dark, bright = torch.full((4, 1, 8, 8), -1.0), torch.full((4, 1, 8, 8), 0.0)
    sheet = save_grid(tmp_path / "deep" / "sheet.png", (dark, bright), columns=2, smallest=1)
    assert np.asarray(Image.open(tmp_path / "deep" / "sheet.png")).tolist() == sheet.tolist()
    assert [int(sheet[2 + 10 * row + 4, 6, 0]) for row in range(4)] == [0, 128, 0, 128]


def test_an_incomplete_last_row(tmp_path: Path) -> None:
    first, second = torch.full((3, 1, 8, 8), -1.0), torch.full((3, 1, 8, 8), 0.0)
    sheet = save_grid(tmp_path / "sheet.png", (first, second), columns=2, smallest=1)
    values = [[int(sheet[2 + 10 * row + 4, 2 + 10 * column + 4, 0]) for column in range(2)] for row in range(4)]
    assert values == [[0, 0], [128, 128], [0, 255], [128, 255]]
