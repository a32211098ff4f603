"""What trained models give back, as small objects that show and save themselves."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from ldm_lightning.callbacks.picture_grid import enlarged, grid, png, rows_of, to_uint8
from ldm_lightning.metrics.reconstruction import reconstruction_metrics
from ldm_lightning.output import Output

__all__ = ["Reconstructions", "Samples"]


@dataclass(frozen=True)
class Samples:
    """Samples of a second stage.

    Attributes:
        items: (N, C, *space) in [-1, 1], on the CPU.
        latents: (N, c, *space) standardized, on the CPU.
        numbers: (N,) int64; a sample is a function of its number, its condition and the seed.
        conditions: what each was drawn under, in words, by condition.
        seed: of all noise.
        sampler: name and number of network evaluations.
    """

    items: Tensor
    latents: Tensor
    numbers: Tensor
    conditions: dict[str, list[str]]
    seed: int
    sampler: str

    def __len__(self) -> int:
        return len(self.items)

    def grid(self, columns: int = 10) -> Image.Image:
        """All of them on one sheet."""
        return Image.fromarray(self._sheet(columns))

    def save(self, folder: str | Path) -> Path:
        """Write a PNG file of each, by its number, and ``grid.png``; returns the folder.

        Raises:
            UserError: a file that this package did not write is in the way; nothing is written then.
        """
        output = Output(Path(folder))
        pictures = zip(self.numbers.tolist(), to_uint8(self.items), strict=True)
        files = {f"{number:06d}.png": png(picture) for number, picture in pictures}
        output.add(files | {"grid.png": png(self._sheet())})
        return Path(folder)

    def _repr_png_(self) -> bytes:
        """How notebooks show them."""
        return png(self._sheet())

    def _sheet(self, columns: int = 10) -> NDArray[np.uint8]:
        return enlarged(grid(self.items, columns))


@dataclass(frozen=True)
class Reconstructions:
    """Items through a first stage and back.

    Attributes:
        items: (N, C, *space) in [-1, 1], the reconstructions.
        originals: likewise.
        latents: (N, c, *space) standardized, the posterior's modes.
    """

    items: Tensor
    originals: Tensor
    latents: Tensor

    def __len__(self) -> int:
        return len(self.items)

    def figures(self) -> dict[str, float]:
        """PSNR (dB), SSIM and mean absolute difference over all items."""
        metrics = reconstruction_metrics()
        metrics.update(self.items.cpu(), self.originals.cpu())
        return {name: float(value) for name, value in metrics.compute().items()}

    def grid(self, columns: int = 10) -> Image.Image:
        """Rows of originals, reconstructions and differences on one sheet."""
        return Image.fromarray(self._sheet(columns))

    def _repr_png_(self) -> bytes:
        """How notebooks show them."""
        return png(self._sheet())

    def _sheet(self, columns: int = 10) -> NDArray[np.uint8]:
        difference = (self.items - self.originals).abs() - 1
        return enlarged(grid(rows_of((self.originals, self.items, difference), columns), columns))
