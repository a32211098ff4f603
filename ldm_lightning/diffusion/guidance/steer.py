"""What all guidances share: from a contrast of two predictions to the guided one."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from ldm_lightning.diffusion.denoiser import Denoiser
from ldm_lightning.diffusion.guidance.denoise import Denoise
from ldm_lightning.diffusion.guidance.interval import Interval, Limited
from ldm_lightning.diffusion.guidance.rescale import rescaled

__all__ = ["Contrast", "Guidance", "one_network", "plain", "steer"]

Condition = Mapping[str, Tensor]


class Guidance(Protocol):
    """Binds a condition to a denoiser."""

    def __call__(self, denoiser: Denoiser, condition: Condition) -> Denoise:
        """Return the function (z (B, C, *space), t (B,)) -> clean latents."""
        ...


@dataclass(frozen=True)
class Contrast:
    """The two predictions that a guidance extrapolates through.

    Attributes:
        towards: the plain conditional prediction alone.
        away: what is steered away from alone.
        both: the two (towards, away), at the least cost.
    """

    towards: Denoise
    away: Denoise
    both: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]


def steer(contrast: Contrast, scale: float, rescale: float, interval: Interval | None, denoiser: Denoiser) -> Denoise:
    """The guided prediction; a prediction that has no part in it is not computed."""
    if scale == 1:
        return contrast.towards

    def guided(z: Tensor, t: Tensor) -> Tensor:
        if scale == 0 and rescale == 0:
            return contrast.away(z, t)
        towards, away = contrast.both(z, t)
        return rescaled(away + scale * (towards - away), towards, rescale)

    return guided if interval is None else Limited(guided, contrast.towards, interval, denoiser.path.schedule)


def plain(denoiser: Denoiser, condition: Condition, drop: bool = False) -> Denoise:
    """The unguided prediction under ``condition``, or under the null condition."""

    def predict(z: Tensor, t: Tensor) -> Tensor:
        return denoiser.clean(z, t, condition, torch.full_like(t, drop, dtype=torch.bool))

    return predict


def one_network(denoiser: Denoiser, towards: Condition, away: Condition, drop: bool) -> Contrast:
    """Two conditions of one network, as one evaluation of 2 B rows; ``drop`` makes the second one the null."""

    def both(z: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        # Here and not once for all: the estimate of a self-conditioned network changes between the calls.
        joined = {name: torch.cat([value, away[name]]) for name, value in towards.items()}
        dropped = torch.cat([torch.zeros_like(t), torch.full_like(t, drop)]).bool()
        first, second = denoiser.clean(torch.cat([z, z]), torch.cat([t, t]), joined, dropped).chunk(2)
        return first, second

    return Contrast(plain(denoiser, towards), plain(denoiser, away, drop), both)
