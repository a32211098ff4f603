"""How far an ancestral step spreads; see :mod:`~ldm_lightning.diffusion.learned_variance`."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from ldm_lightning.diffusion.denoised import Denoised, Level
from ldm_lightning.diffusion.learned_variance import extremes
from ldm_lightning.diffusion.sampler.trajectory import step_size
from ldm_lightning.errors import UserError

__all__ = ["Variance", "learned_variance", "lower_variance", "upper_variance"]

# Of the step from t down to s > 0, given the answer at t: one number, or one for every latent.
Variance = Callable[[Level, Level, Denoised], float | Tensor]


def _extremes(t: Level, s: Level) -> tuple[float, float]:
    return extremes(-math.expm1(-2 * step_size(t, s)), (s.alpha, t.alpha), (s.sigma, t.sigma))


def lower_variance(t: Level, s: Level, answer: Denoised) -> float:
    """Of q(z_s | z_t, z_0): right if all data were one point (Ho et al. 2020, section 3.2)."""
    return _extremes(t, s)[0]


def upper_variance(t: Level, s: Level, answer: Denoised) -> float:
    """Right if the data were N(0, I) (Ho et al. 2020, section 3.2)."""
    return _extremes(t, s)[1]


def learned_variance(t: Level, s: Level, answer: Denoised) -> Tensor:
    """In between, as the network has learned it (Nichol & Dhariwal 2021, eq. 15).

    Raises:
        UserError: it has not.
    """
    if answer.variance_fraction is None:
        raise UserError("sampler.variance: this model has not learned a variance: choose lower_variance")
    lower, upper = (math.log(extreme) for extreme in _extremes(t, s))
    return torch.exp(lower + (upper - lower) * answer.variance_fraction)
