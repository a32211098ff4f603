"""What all guidances share: from a contrast of two predictions to the guided one."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from ldm_lightning.diffusion.denoised import Denoised, Guided, Level
from ldm_lightning.diffusion.denoiser import Denoiser
from ldm_lightning.diffusion.guidance.interval import Interval, Limited
from ldm_lightning.diffusion.guidance.rescale import rescaled

__all__ = ["Contrast", "Guidance", "one_network", "plain", "steer"]

Condition = Mapping[str, Tensor]


class Guidance(Protocol):
    """Binds a condition to a denoiser."""

    def __call__(self, denoiser: Denoiser, condition: Condition) -> Guided:
        """Return the guided denoise function."""
        ...


@dataclass(frozen=True)
class Contrast:
    """The two predictions that a guidance extrapolates through.

    Attributes:
        towards: the plain conditional prediction alone.
        away: what is steered away from alone.
        both: the two (towards, away), at the least cost.
    """

    towards: Guided
    away: Guided
    both: Callable[[Tensor, Level, Tensor | None], tuple[Denoised, Denoised]]


def steer(contrast: Contrast, scale: float, rescale: float, interval: Interval | None) -> Guided:
    """The guided prediction; a prediction that has no part in it is not computed.

    Only the clean latents are steered: the variance is that of what is steered towards.
    """
    if scale == 1:
        return contrast.towards

    def guided(z: Tensor, level: Level, estimate: Tensor | None = None) -> Denoised:
        if scale == 0 and rescale == 0:
            return contrast.away(z, level, estimate)
        towards, away = contrast.both(z, level, estimate)
        clean = away.clean + scale * (towards.clean - away.clean)
        return Denoised(rescaled(clean, towards.clean, rescale), towards.variance_fraction)

    return guided if interval is None else Limited(guided, contrast.towards, interval)


def plain(denoiser: Denoiser, condition: Condition, drop: bool = False) -> Guided:
    """The unguided prediction under ``condition``, or under the null condition."""

    def predict(z: Tensor, level: Level, estimate: Tensor | None = None) -> Denoised:
        dropped = torch.full_like(level.time, drop, dtype=torch.bool)
        return denoiser.denoise(z, level.time, condition, dropped, estimate)

    return predict


def one_network(denoiser: Denoiser, towards: Condition, away: Condition, drop: bool) -> Contrast:
    """Two conditions of one network, as one evaluation of 2 B rows; ``drop`` makes the second one the null."""

    def both(z: Tensor, level: Level, estimate: Tensor | None) -> tuple[Denoised, Denoised]:
        t = level.time
        joined = {name: torch.cat([value, away[name]]) for name, value in towards.items()}
        dropped = torch.cat([torch.zeros_like(t), torch.full_like(t, drop)]).bool()
        known = None if estimate is None else torch.cat([estimate, estimate])
        answer = denoiser.denoise(torch.cat([z, z]), torch.cat([t, t]), joined, dropped, known)
        first, second = answer.clean.chunk(2)
        fraction = answer.variance_fraction
        return Denoised(first, None if fraction is None else fraction[: len(z)]), Denoised(second)

    return Contrast(plain(denoiser, towards), plain(denoiser, away, drop), both)
