"""``data=latents``: a configuration that names a latent cache, completed from it, or led back to the pictures.

The cache records the configuration of the pictures it was made of. A second stage that trains on it records both, so
that it can later be evaluated on the pictures although the cache is gone.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf, open_dict

from ldm_lightning.data.latents import LatentCache
from ldm_lightning.errors import UserError
from ldm_lightning.experiment.run_folder import first_stage_of
from ldm_lightning.experiment.saved import read_cache, read_manifest
from ldm_lightning.experiment.stages import stage_of

__all__ = ["FIRST_STAGE", "adopt", "is_cached", "show_pictures"]

FIRST_STAGE = "first_stage"  # the artifact's folder inside a cache
_TARGET = f"{LatentCache.__module__}.{LatentCache.__qualname__}"
_FACTS = ("transform", "validation", "test", "caption_length")


def is_cached(config: DictConfig) -> bool:
    """Whether ``config.data`` are cached latents."""
    return bool(OmegaConf.select(config, "data.source._target_") == _TARGET)


def adopt(config: DictConfig) -> None:
    """Fill in what the cache decides: the pictures' configuration, and the first stage unless one is given.

    Raises:
        UserError: there is no usable cache, it was made by another first stage than the one given, or the
            configuration asks for something that it does not hold.
    """
    if not is_cached(config):
        return
    if not stage_of(config.stage).stands_on_first_stage:
        raise UserError(f"data=latents holds no pictures for stage={config.stage} to train on: choose other data")
    root = Path(config.data.root)
    manifest = read_cache(root)
    source = dict(manifest.config["source"])
    if config.data.pictures is not None:
        place = next((key for key in ("root", "path") if key in source), None)
        if place is None:
            raise UserError(
                f"data.pictures={config.data.pictures}: the pictures of {root} lie in no folder, leave it out"
            )
        source[place] = config.data.pictures
    with open_dict(config):
        for key in _FACTS:
            _fill(config.data, key, manifest.config[key], root)
        config.data.source.pictures = source
        if "autoencoder" in config.first_stage:
            raise UserError("data=latents holds latents of a trained first stage: leave first_stage=... out")
        if OmegaConf.is_missing(config.first_stage, "run"):
            config.first_stage.run = str(root / FIRST_STAGE)
    if read_manifest(first_stage_of(config), "first_stage")["sha256"] != manifest.first_stage:
        raise UserError(
            f"first_stage.run={config.first_stage.run} is not the first stage that encoded {root}: leave it out, "
            "or encode the pictures with it"
        )


def _fill(data: DictConfig, key: str, value: Any, root: Path) -> None:
    if not OmegaConf.is_missing(data, key) and data[key] != value:
        raise UserError(f"data.{key}={data[key]}, but {root} was made with {value}: leave it out, or encode again")
    data[key] = value


def show_pictures(config: DictConfig) -> None:
    """Lead a recorded configuration of cached latents back to the pictures they were made of."""
    if is_cached(config):
        config.data.source = config.data.source.pictures
        config.data.root = config.data.source.get("root")
        del config.data["dataset"]
