"""``ldm reconstruct``: pictures through a first stage and back."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import torch
from omegaconf import DictConfig
from torch import Tensor

from ldm_lightning.callbacks.picture_grid import enlarged, grid, png, rows_of
from ldm_lightning.errors import UserError
from ldm_lightning.experiment import build
from ldm_lightning.experiment.load import load_first_stage
from ldm_lightning.experiment.result import check_result, publish
from ldm_lightning.experiment.run_folder import output_folder
from ldm_lightning.experiment.schema import check_numbers
from ldm_lightning.latent.frozen import FrozenFirstStage
from ldm_lightning.latent.tiled import tiled
from ldm_lightning.metrics.reconstruction import reconstruction_metrics

__all__ = ["main"]

_NAME = "sheet"


def main(config: DictConfig) -> None:
    """Save rows of originals, reconstructions and differences, and print how far apart they are."""
    kinds = {"n": int, "columns": int, "size": int, "tile": int}
    check_numbers(config, kinds, dict.fromkeys(kinds, 1))
    folder = output_folder(config.output, Path(config.run) / "reconstructions")
    check_result(folder, _NAME, picture=True)
    trained = load_first_stage(config.run)
    if config.pictures is not None:
        if not Path(config.pictures).exists():
            raise UserError(f"pictures={config.pictures} does not exist: check its spelling")
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
        reconstruct, batch_size = partial(_in_tiles, trained.latents, config.tile), 1
    reconstructions = torch.cat([reconstruct(part.to(trained.device)).cpu() for part in originals.split(batch_size)])
    metrics = reconstruction_metrics()
    metrics.update(reconstructions, originals)
    difference = (reconstructions - originals).abs() - 1
    sheet = png(enlarged(grid(rows_of((originals, reconstructions, difference), config.columns), config.columns)))
    n = len(originals)
    figures = {f"{name}@{n}": {"value": float(value)} for name, value in metrics.compute().items()}
    protocol = {
        "run": str(Path(config.run).absolute()),
        "weights": trained.artifact.manifest["sha256"][:12],
        "step": trained.artifact.manifest["step"],
        "pictures": "validation" if config.pictures is None else str(Path(config.pictures).absolute()),
        "data": data.fingerprint,
        **{key: config[key] for key in ("size", "tile", "columns")},
    }
    publish(folder, _NAME, {"figures": figures, "protocol": protocol}, sheet)
    print(", ".join(f"{name} {figure['value']:.4g}" for name, figure in figures.items()))
    print(f"original, reconstruction, difference: {folder / _NAME}.png")


@torch.no_grad()
def _in_tiles(first_stage: FrozenFirstStage, tile: int, x: Tensor) -> Tensor:
    """As ``FirstStage.reconstruct``, in tiles of ``tile`` pixels a side that overlap by about a quarter.

    Where tiles blend, codes become mixtures of codes; ``decode`` puts those on the nearest code.
    """
    factor = int(first_stage.autoencoder.encoder.factor)  # type: ignore[arg-type]
    overlap = tile // 4 // factor
    z = tiled(first_stage.encode, x, tile, overlap * factor, 1 / factor)
    return tiled(first_stage.decode, z, tile // factor, overlap, factor)
