"""The likelihood of unseen latents under a trained second stage, as a figure of ``ldm evaluate likelihood=...``."""

from __future__ import annotations

from dataclasses import fields
from functools import partial
from typing import Any

import torch
from hydra.utils import instantiate
from omegaconf import DictConfig
from tqdm import tqdm

from ldm_lightning.cli.schema import check
from ldm_lightning.data.datamodule import DataModule
from ldm_lightning.diffusion.guidance import ClassifierFree
from ldm_lightning.diffusion.learned_variance import observed
from ldm_lightning.diffusion.likelihood import LikelihoodMethod
from ldm_lightning.diffusion.path import BernoulliPath, check_path
from ldm_lightning.errors import UserError
from ldm_lightning.rng import Streams
from ldm_lightning.training.latent_diffusion import LatentDiffusion

__all__ = ["measure_likelihood"]


def measure_likelihood(
    config: DictConfig, module: LatentDiffusion, data: DataModule, split: str
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Figures and protocol of the first ``n`` pictures of a split, each under its own condition, without guidance.

    On a Gaussian path discrete latents have a probability and no density; "discrete" in the figure's name says so.

    Raises:
        UserError: the latents are codes of a book; or some are discrete and others not.
    """
    check(config.likelihood)
    method: LikelihoodMethod = instantiate(config.likelihood)
    check_path("likelihood", method.__call__, module.denoiser.path)
    bits = isinstance(module.denoiser.path, BernoulliPath)
    nats, evaluations, spacings = [], [], []
    for batch in tqdm(data.loader(split, limit=config.n), desc="likelihood", unit="batch"):
        own = batch.to(module.device)
        streams = Streams(config.seed, own.index)
        z0 = module.first_stage.encode(own.x, streams)
        spacing = None if bits else module.first_stage.scale.spacing(z0)
        spacings.append([] if spacing is None else spacing.tolist())
        if spacings[-1] != spacings[0]:
            raise UserError(
                "likelihood: some pictures hold values of 8 bits and others do not, and the probability of the one and "
                "the density of the other have no mean: measure them apart"
            )
        denoise = observed(module.denoiser, partial(ClassifierFree(), condition=own.condition), z0)
        result = method(denoise, module.denoiser.path, z0, streams, spacing=spacing)
        nats.append(result.nats.cpu())
        evaluations.append(result.evaluations)
    values, discrete = torch.cat(nats), bool(spacings[0])
    settings = {field.name: getattr(method, field.name) for field in fields(method)}  # type: ignore[arg-type]
    named = ", ".join(f"{name}={getattr(value, '__name__', value)}" for name, value in settings.items())
    plain = ", without self-conditioning" if module.objective.self_conditioning else ""
    points = ", discrete: upper bound on -log probability of their cells" if discrete else ""
    text = (
        f"{type(method).__name__}({named}), {max(evaluations)} evaluations; nats per dimension of standardized latents "
        f"drawn from the first stage's posterior{points}, unguided{plain}, "
        f"standard error {values.std() / len(values) ** 0.5:.2g}"
    )
    label = f"{method.label}_discrete" if discrete else method.label
    return {f"{label}_per_dim@{len(values)}": {"value": float(values.mean())}}, {"likelihood": text}
