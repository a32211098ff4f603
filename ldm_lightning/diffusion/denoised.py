"""What samplers ask, and what they are answered: the clean latents, given noisy ones at a level of noise."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

__all__ = ["Denoise", "Denoised", "Guided", "Level", "answering"]


@dataclass(frozen=True, eq=False)
class Level:
    """One time of a path, as the network is told it and as the host knows it.

    What depends on it is decided by the host's numbers: to read a tensor would be to wait for the device.

    Attributes:
        time: (B,), on the device of the latents: what the network is told.
        value: the same time, 0 clean to 1 noise, in double precision.
        alpha: signal coefficient; like the next two it is nan on a path that has none.
        sigma: noise coefficient.
        log_snr: log(alpha^2 / sigma^2); infinite where one of them is 0.
    """

    time: Tensor
    value: float
    alpha: float = math.nan
    sigma: float = math.nan
    log_snr: float = math.nan


@dataclass(frozen=True, eq=False)
class Denoised:
    """What is known about the clean latents.

    Attributes:
        clean: (B, C, *space), their natural parameter: on a Gaussian path their mean E[z_0 | z_t], for bits the logit
            of the probability of a one.
        variance_fraction: (B, C, *space), where between its extremes the variance of a step lies, f of
            :mod:`~ldm_lightning.diffusion.learned_variance`; None where the model has not learned it.
    """

    clean: Tensor
    variance_fraction: Tensor | None = None


Denoise = Callable[[Tensor, Level], Denoised]
"""The function that samplers call with latents z (B, C, *space) and their level, the same for all rows."""


class Guided(Protocol):
    """A denoise function that can also be told an estimate of what it will answer."""

    def __call__(self, z: Tensor, level: Level, estimate: Tensor | None = None) -> Denoised:
        """Answer for latents ``z`` (B, C, *space); ``estimate`` is of the clean latents, and shaped like them.

        Only a self-conditioned network reads it, see :mod:`~ldm_lightning.diffusion.self_conditioning`.
        """
        ...


def answering(clean: Callable[[Tensor, Tensor], Tensor]) -> Denoise:
    """The denoise function of a plain one, (z, t (B,)) -> clean latents, such as a closed form."""

    def denoise(z: Tensor, level: Level) -> Denoised:
        return Denoised(clean(z, level.time))

    return denoise
