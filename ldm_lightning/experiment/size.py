"""How large a stage is, as it is printed when a run starts."""

from __future__ import annotations

import torch

from ldm_lightning.data.datamodule import DataModule
from ldm_lightning.nn.count import multiply_adds, parameters
from ldm_lightning.training.first_stage import FirstStage
from ldm_lightning.training.latent_diffusion import LatentDiffusion

__all__ = ["size"]


def size(module: FirstStage | LatentDiffusion, data: DataModule) -> str:
    """Trainable parameters, and multiply-adds of both halves of a first stage, or of a denoiser."""
    if isinstance(module, FirstStage):
        autoencoder = module.autoencoder
        x = torch.zeros(1, *data.shape)
        height, width = (side // int(autoencoder.encoder.factor) for side in data.shape[1:])  # type: ignore[arg-type]
        z = torch.zeros(1, autoencoder.latent_channels, height, width)
        operations = {
            "to encode a picture": multiply_adds(autoencoder.encoder, x),
            "to decode it": multiply_adds(autoencoder.decoder, z),
        }
    else:
        z, t = torch.zeros(1, *module.latent_shape), torch.full((1,), 0.5)
        operations = {"an evaluation": multiply_adds(module.denoiser.network, z, t, data.conditions(1))}
    counts = ", ".join(f"{_short(count)} {what}" for what, count in operations.items())
    return f"{_short(parameters(module))} parameters; multiply-adds: {counts}"


def _short(count: int) -> str:
    power = min(4, max(0, (len(str(count)) - 1) // 3))
    return f"{count / 1000**power:.3g} {' kMGT'[power]}".strip()
