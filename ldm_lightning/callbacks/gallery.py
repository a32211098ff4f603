"""Galleries: at every validation, the same seeds and the same pictures, so that progress can be seen."""

from __future__ import annotations

from pathlib import Path

import pytorch_lightning as pl
import torch
from torch import Tensor

from ldm_lightning.callbacks.picture_grid import enlarged, grid, png, rows_of
from ldm_lightning.errors import UserError
from ldm_lightning.loggers.media import log_pictures
from ldm_lightning.output import Output

__all__ = ["ReconstructionGallery", "SampleGallery"]


def _check(n: int, columns: int) -> None:
    if n < 1 or columns < 1:
        raise UserError(f"callbacks.gallery.n={n} and callbacks.gallery.columns={columns} must be at least 1")


def _show(folder: Path, trainer: pl.Trainer, name: str, pictures: Tensor, columns: int) -> None:
    sheet, output = enlarged(grid(pictures, columns)), Output(folder)
    output.add({output.place(f"{name}_{trainer.global_step:07d}.png"): png(sheet)})
    for logger in trainer.loggers:
        log_pictures(logger, name, sheet, trainer.global_step)


class SampleGallery(pl.Callback):
    """Samples of fixed seeds and conditions, by the module's own sampler and guidance.

    Args:
        folder: where the sheets go.
        n: number of samples.
        columns: samples per row.
        seed: of the samples.
    """

    def __init__(self, folder: str, n: int = 40, columns: int = 10, seed: int = 0) -> None:
        _check(n, columns)
        self.folder = Path(folder)
        self.n, self.columns, self.seed = n, columns, seed

    def on_validation_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Draw one sheet on the first rank; sampling needs no other rank."""
        if trainer.sanity_checking or not trainer.is_global_zero:
            return
        condition = {k: v.to(pl_module.device) for k, v in trainer.datamodule.conditions(self.n).items()}  # type: ignore[attr-defined]
        index = torch.arange(self.n, device=pl_module.device)
        pictures: Tensor = pl_module.sample(index, condition, self.seed)  # type: ignore[operator]
        _show(self.folder, trainer, "samples", pictures, self.columns)


class ReconstructionGallery(pl.Callback):
    """The first validation pictures, a row of originals above a row of reconstructions.

    Args:
        folder: where the sheets go.
        n: number of pictures.
        columns: pictures per row.
    """

    def __init__(self, folder: str, n: int = 20, columns: int = 10) -> None:
        _check(n, columns)
        self.folder = Path(folder)
        self.n, self.columns = n, columns

    def on_validation_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Draw one sheet on the first rank."""
        if trainer.sanity_checking or not trainer.is_global_zero:
            return
        originals = trainer.datamodule.pictures("validation", self.n).x.to(pl_module.device)  # type: ignore[attr-defined]
        pictures: Tensor = pl_module.reconstruct(originals)  # type: ignore[operator]
        _show(self.folder, trainer, "reconstructions", rows_of((originals, pictures), self.columns), self.columns)
