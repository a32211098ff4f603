"""A trained run, ready to use: what ``sample``, ``reconstruct`` and ``evaluate`` start from, and scripts as well."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Generic, TypeVar

import torch
from omegaconf import DictConfig, OmegaConf

from ldm_lightning.artifact import Artifact, locate
from ldm_lightning.cli import build
from ldm_lightning.cli.best import announce_stale
from ldm_lightning.cli.denoiser import load_weights
from ldm_lightning.cli.saved import read_artifact, read_manifest
from ldm_lightning.errors import UserError
from ldm_lightning.training.first_stage import FirstStage
from ldm_lightning.training.latent_diffusion import LatentDiffusion

__all__ = ["Trained", "device", "load_first_stage", "load_latent_diffusion", "without_judges"]

Module = TypeVar("Module", FirstStage, LatentDiffusion)


@dataclass(frozen=True)
class Trained(Generic[Module]):
    """A trained stage.

    Attributes:
        module: with its trained weights, in eval mode, on :func:`device`.
        artifact: what its run exported.
        config: the configuration it was trained with.
    """

    module: Module
    artifact: Artifact
    config: DictConfig


def device() -> torch.device:
    """Where a trained model runs: the first GPU, else the processor."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def load_first_stage(run: str | Path) -> Trained[FirstStage]:
    """The first stage trained in the folder ``run``.

    Raises:
        UserError: there is none, or it is damaged.
    """
    artifact = read_artifact(run, "first_stage")
    announce_stale(run)
    config = OmegaConf.create(artifact.manifest["config"])
    module = build.first_stage(without_judges(config))
    load_weights(module.autoencoder, artifact, run)
    return Trained(module.eval().to(device()), artifact, config)


def without_judges(config: DictConfig) -> DictConfig:
    """The configuration of a first stage without the networks that only training needs."""
    lean = config.copy()
    for key in ("adversary", "regularizers", "loss.perceptual"):
        OmegaConf.update(lean.first_stage, key, None, force_add=True)
    return lean


def load_latent_diffusion(
    run: str | Path, guidance: DictConfig | None = None, scale: float | None = None
) -> Trained[LatentDiffusion]:
    """The second stage trained in the folder ``run``, with the first stage it was exported with.

    Args:
        run: the run folder.
        guidance: instead of the one it was trained with.
        scale: instead of that guidance's.

    Raises:
        UserError: there is none, or it is damaged, or cannot be guided like this.
    """
    artifact = read_artifact(run, "latent_diffusion")
    announce_stale(run)
    config = OmegaConf.create(artifact.manifest["config"])
    first_stage = None if build.stands_alone(config) else locate(Path(run)) / "first_stage"
    if first_stage is not None and not first_stage.is_dir():
        raise UserError(f"{first_stage} is lost: copy the first stage's export folder there")
    if first_stage is not None and read_manifest(first_stage)["sha256"] != config.derived.first_stage:
        raise UserError(f"{first_stage} is not the first stage that {run} was trained on: copy its export folder there")
    if guidance is not None:
        config.guidance = guidance
    if scale is not None:
        config.guidance.scale = scale
    module = build.latent_diffusion(config, first_stage)
    load_weights(module.denoiser.network, artifact, run)
    module.first_stage.to(device())
    return Trained(module.eval().to(device()), artifact, config)
