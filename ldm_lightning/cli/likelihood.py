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
from ldm_lightning.diffusion.path import check_path
from ldm_lightning.rng import Streams
from ldm_lightning.training.latent_diffusion import LatentDiffusion

__all__ = ["measure_likelihood"]


def measure_likelihood(
    config: DictConfig, module: LatentDiffusion, data: DataModule, split: str
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Figures and protocol of the first ``n`` pictures of a split, each under its own condition, without guidance."""
    check(config.likelihood)
    method: LikelihoodMethod = instantiate(config.likelihood)
    check_path("likelihood", method.__call__, module.denoiser.path)
    nats, evaluations = [], []
    for batch in tqdm(data.loader(split, limit=config.n), desc="likelihood", unit="batch"):
        own = batch.to(module.device)
        streams = Streams(config.seed, own.index)
        z0 = module.first_stage.encode(own.x, streams)
        denoise = observed(module.denoiser, partial(ClassifierFree(), condition=own.condition), z0)
        result = method(denoise, module.denoiser.path, z0, streams)
        nats.append(result.nats.cpu())
        evaluations.append(result.evaluations)
    values = torch.cat(nats)
    settings = {field.name: getattr(method, field.name) for field in fields(method)}  # type: ignore[arg-type]
    named = ", ".join(f"{name}={getattr(value, '__name__', value)}" for name, value in settings.items())
    plain = ", without self-conditioning" if module.objective.self_conditioning else ""
    text = (
        f"{type(method).__name__}({named}), {max(evaluations)} evaluations; nats per dimension of standardized latents "
        f"drawn from the first stage's posterior, unguided{plain}, "
        f"standard error {values.std() / len(values) ** 0.5:.2g}"
    )
    return {f"{method.label}_per_dim@{len(values)}": {"value": float(values.mean())}}, {"likelihood": text}
