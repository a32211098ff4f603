"""``ldm reconstruct``: pictures through a first stage and back."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import torch
from omegaconf import DictConfig
from torch import Tensor

from ldm_lightning.callbacks.picture_grid import save_grid
from ldm_lightning.cli import build
from ldm_lightning.cli.run_folder import check_writable
from ldm_lightning.cli.schema import check_numbers
from ldm_lightning.cli.trained import device, load_first_stage
from ldm_lightning.errors import UserError
from ldm_lightning.latent.frozen import FrozenFirstStage
from ldm_lightning.latent.tiled import tiled
from ldm_lightning.metrics.reconstruction import reconstruction_metrics

__all__ = ["main"]


def main(config: DictConfig) -> None:
    """Save rows of originals, reconstructions and differences, and print how far apart they are."""
    kinds = {"n": int, "columns": int, "size": int, "tile": int}
    check_numbers(config, kinds, dict.fromkeys(kinds, 1))
    sheet = Path(config.output or Path(config.run) / "reconstructions.png")
    if sheet.suffix.lower() != ".png" or sheet.is_dir():
        raise UserError(f"output={sheet} is no file that ends in .png: choose one")
    trained = load_first_stage(config.run)
    check_writable(sheet.parent, "choose another output=...")
    if config.pictures is not None:
        if not Path(config.pictures).is_dir():
            raise UserError(f"pictures={config.pictures} is no folder: check its spelling")
        trained.config.data.source = {"_target_": "ldm_lightning.data.folder.ImageFolder", "root": config.pictures}
        trained.config.data.validation, trained.config.data.test = 0.0, 0.0
    build.move_pictures(trained.config, config.root)
    if config.size is not None:
        trained.config.data.size = trained.config.data.transform.size = config.size
    data = build.data_module(trained.config)
    originals = data.pictures("validation" if config.pictures is None else "train", config.n).x
    if config.tile is None:
        reconstruct, batch_size = trained.module.reconstruct, 64
    else:
        first_stage = build.frozen_first_stage(trained.artifact).to(device())
        reconstruct, batch_size = partial(_in_tiles, first_stage, config.tile), 1
    reconstructions = torch.cat([reconstruct(part.to(device())).cpu() for part in originals.split(batch_size)])
    metrics = reconstruction_metrics()
    metrics.update(reconstructions, originals)
    difference = (reconstructions - originals).abs() - 1
    save_grid(sheet, (originals, reconstructions, difference), config.columns)
    values = ", ".join(f"{name}@{len(originals)} {value:.4g}" for name, value in metrics.compute().items())
    print(f"{values}\noriginal, reconstruction, difference: {sheet}")


@torch.no_grad()
def _in_tiles(first_stage: FrozenFirstStage, tile: int, x: Tensor) -> Tensor:
    """As ``FirstStage.reconstruct``, in tiles of ``tile`` pixels a side that overlap by about a quarter.

    Where tiles blend, codes become mixtures of codes; ``decode`` puts those on the nearest code.
    """
    factor = int(first_stage.autoencoder.encoder.factor)  # type: ignore[arg-type]
    overlap = tile // 4 // factor
    z = tiled(first_stage.encode, x, tile, overlap * factor, 1 / factor)
    return tiled(first_stage.decode, z, tile // factor, overlap, factor)
