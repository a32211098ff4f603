"""Ancestral sampling (Ho et al. 2020, algorithm 2), for any number of steps and any Gaussian path."""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import Tensor

from ldm_lightning.diffusion.denoised import Denoise
from ldm_lightning.diffusion.needs import Needs
from ldm_lightning.diffusion.path import GaussianPath
from ldm_lightning.diffusion.sampler.grid import Grid, uniform_grid
from ldm_lightning.diffusion.sampler.part import WHOLE, Part
from ldm_lightning.diffusion.sampler.trajectory import FreshNoise, full_precision, step_size, trajectory
from ldm_lightning.diffusion.sampler.variance import Variance, learned_variance, lower_variance
from ldm_lightning.rng import Streams

__all__ = ["DDPM"]


@dataclass(frozen=True)
class DDPM:
    """Draw z_s around the mean of q(z_s | z_t, z_0 = predicted clean data), see :meth:`GaussianPath.posterior`.

    Attributes:
        steps: number of steps, equal to the number of network evaluations.
        grid: times of the steps.
        variance: of the draw; the last step has none.
    """

    steps: int = 250
    grid: Grid = uniform_grid
    variance: Variance = lower_variance

    @property
    def needs(self) -> Needs:
        """A learned variance only where it is drawn by."""
        chosen = getattr(self.variance, "func", self.variance)
        return Needs(paths=(GaussianPath,), variance=chosen is learned_variance)

    @property
    def evaluations(self) -> int:
        """Exact number of network evaluations."""
        return self.steps

    @full_precision
    def __call__(self, denoise: Denoise, path: GaussianPath, z: Tensor, streams: Streams, part: Part = WHOLE) -> Tensor:
        """Turn ``z`` (B, C, *space) at the start of ``part`` into latents of the same shape at its stop."""
        noise = FreshNoise(streams, z, part)
        for step, (t, s) in enumerate(trajectory(self.grid, self.steps, path, z, part)):
            answer = denoise(z, t)
            h = step_size(t, s)
            added = -math.expm1(-2 * h)  # the share of the noise at t that was added since s
            mean = math.exp(-h) * s.sigma / t.sigma * z + s.alpha * added * answer.clean
            z = noise.add(mean, self.variance(t, s, answer) ** 0.5 if s.sigma else 0.0, step)
        return z
