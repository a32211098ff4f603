"""The stage ``first_stage``: an autoencoder of pictures."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from hydra.utils import instantiate
from omegaconf import DictConfig, open_dict
from torch import Tensor

from ldm_lightning.data.datamodule import DataModule
from ldm_lightning.diagnosis import Trial
from ldm_lightning.errors import UserError
from ldm_lightning.evaluation.first_stage import measure_first_stage
from ldm_lightning.experiment import build as parts
from ldm_lightning.experiment.denoiser import fill, load_weights
from ldm_lightning.experiment.load import default_device, load_first_stage, without_judges
from ldm_lightning.experiment.measuring import MOST, Measured, made, reference_split, watched
from ldm_lightning.experiment.run_folder import first_stage_of
from ldm_lightning.experiment.saved import read_artifact
from ldm_lightning.experiment.trial import ITEMS, LEAST, affordable
from ldm_lightning.nn.count import multiply_adds
from ldm_lightning.training.first_stage import FirstStage

__all__ = ["build", "derive", "details", "load", "measure", "operations", "trial"]

load = load_first_stage
_MOST_AT_ONCE = 64  # pictures; a run's own batch may have been that of many devices


def derive(config: DictConfig, data: DataModule) -> dict[str, Any]:
    """Latent channels, and of a run that goes on with another its architecture and checksum."""
    parts.check_one_first_stage(config)
    if "autoencoder" in config.first_stage:
        return {"latent_channels": instantiate(config.first_stage.autoencoder.bottleneck).latent_channels}
    trained = parts.trained_first_stage(config, data)
    with open_dict(config):
        config.first_stage.autoencoder = trained["config"]["first_stage"]["autoencoder"]
    return {"latent_channels": trained["config"]["derived"]["latent_channels"], "first_stage": trained["sha256"]}


def build(config: DictConfig) -> FirstStage:
    """The first stage in training, from random weights or those of ``first_stage.run``."""
    module = parts.first_stage(config)
    if "run" in config.first_stage:
        artifact = read_artifact(first_stage_of(config), "first_stage")
        load_weights(module.autoencoder, artifact, config.first_stage.run)
    return module


def measure(config: DictConfig, data: DataModule) -> Measured:
    """Its reconstructions of unseen pictures."""
    if config.get("likelihood"):
        raise UserError(f"likelihood= measures a second stage, but {config.run} holds a first stage: leave it out")
    trained, split = load_first_stage(config.run), reference_split(config, data)
    figures, n = measure_first_stage(
        trained.module.autoencoder,
        watched(data.loader(split, limit=config.n or MOST), "reconstructing"),
        device=trained.device,
        perceptual={eye.label(data.shape[1:]): eye.distances for eye in made(config, "perceptual")},
        extractors=made(config, "extractor"),
    )
    return Measured(figures, {"reference": split, "n": n})


def details(config: DictConfig, weights: Mapping[str, Tensor], root: str | None, place: str) -> dict[str, Any]:
    """The statistics of its latents, measured on the very pictures that it was trained on.

    Raises:
        UserError: the weights do not fit, or the pictures are others.
    """
    module = parts.first_stage(without_judges(config)).eval()
    fill(module.autoencoder, weights, place)
    parts.move_pictures(config, root)
    config.data.batch_size = min(config.data.batch_size, _MOST_AT_ONCE)
    data = parts.data_module(config)
    if data.fingerprint != config.derived.data:
        raise UserError(
            f"the pictures in {config.data.get('root')} are not those that this run was trained on, on which its "
            "latents are measured: bring the old ones back, or give their folder by root=..."
        )
    pictures = data.loader("train", config.statistics_pictures)
    _, found = module.to(default_device()).artifact(lambda: pictures)
    return found


def operations(module: FirstStage, data: DataModule) -> Mapping[str, int]:
    """Multiply-adds of both halves."""
    autoencoder = module.autoencoder
    x = torch.zeros(1, *data.shape)
    space = (side // int(autoencoder.encoder.factor) for side in data.shape[1:])  # type: ignore[arg-type]
    z = torch.zeros(1, autoencoder.latent_channels, *space)
    return {
        "to encode a picture": multiply_adds(autoencoder.encoder, x),
        "to decode it": multiply_adds(autoencoder.decoder, z),
    }


def trial(run: str | Path, data: DataModule) -> Trial | str:
    """Errors of its reconstructions of validation items."""
    module = load(run).module
    each = multiply_adds(module.reconstruct, torch.zeros(1, *data.shape, device=module.device))
    n = affordable(module.device, each, ITEMS)
    if n < LEAST:
        return "coding a few pictures would take minutes here"
    errors = []
    for batch in data.loader("validation", limit=n):
        shown = batch.x.to(module.device)
        pairs = zip(module.reconstruct(shown).split(1), shown.split(1), strict=True)
        errors += [module.loss.distance(seen, picture).reshape(1).cpu() for seen, picture in pairs]
    return Trial(data.sizes["validation"], torch.cat(errors))
