"""From a configuration to a denoiser, and from an artifact to its weights."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from pathlib import Path

from hydra.utils import get_object, instantiate
from omegaconf import DictConfig
from torch import Tensor, nn

from ldm_lightning.artifact import Artifact
from ldm_lightning.diffusion.denoiser import Denoiser
from ldm_lightning.diffusion.prediction import Prediction
from ldm_lightning.errors import UserError
from ldm_lightning.nn.conditioner import Conditioner
from ldm_lightning.nn.network import ConditionalNetwork
from ldm_lightning.nn.self_conditioned import SelfConditioned

__all__ = ["denoiser", "fill", "load_weights"]

# What is missing, and how data get it.
_CONDITIONS = {
    "class": "classes to condition on: sort the pictures into one sub-folder a class",
    "caption": "captions to condition on: set data.captions=FILE",
}


def denoiser(config: DictConfig) -> Denoiser:
    """The untrained denoiser that ``config`` describes.

    Raises:
        UserError: the data have no condition that it reads, or it cannot be self-conditioned.
    """
    conditioner: Conditioner = instantiate(config.condition)
    for name in conditioner.reads:
        if name not in config.derived.conditions:
            raise UserError(f"these data have no {_CONDITIONS.get(name, name)}, or add condition=none")
    prediction: Prediction = instantiate(config.prediction)
    estimate = bool(config.objective.get("self_conditioning", 0))
    widths = {"vector_width": conditioner.vector_width, "token_width": conditioner.token_width}
    if estimate or prediction.outputs_per_channel > 1:
        target, channels = config.denoiser._target_, config.denoiser.in_channels
        if "out_channels" not in inspect.signature(get_object(target)).parameters:
            raise UserError(
                f"self-conditioning and learned variance change the numbers of channels, but {target} takes no "
                "out_channels: do without them, or choose denoiser=unet or denoiser=dit"
            )
        widths |= {"in_channels": (1 + estimate) * channels, "out_channels": prediction.outputs_per_channel * channels}
    network: nn.Module = ConditionalNetwork(instantiate(config.denoiser, **widths), conditioner)
    if estimate:
        network = SelfConditioned(network)
    return Denoiser(network, instantiate(config.path), prediction)


def load_weights(module: nn.Module, artifact: Artifact, run: str | Path) -> None:
    """Fill ``module`` with the weights of the artifact of ``run``; see :func:`fill`."""
    fill(module, artifact.weights, f"{run} (written by version {artifact.manifest['version']})")


def fill(module: nn.Module, weights: Mapping[str, Tensor], place: str) -> None:
    """Fill ``module`` with ``weights``, which are from ``place``.

    Raises:
        UserError: they do not fit.
    """
    try:
        module.load_state_dict(weights)
    except RuntimeError as error:
        reason = str(error).splitlines()[1].strip()
        raise UserError(
            f"the weights in {place} do not fit the network its configuration describes: {reason}; use the version "
            "that wrote them, or train again"
        ) from None
