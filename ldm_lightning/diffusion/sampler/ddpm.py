"""Ancestral sampling (Ho et al. 2020, algorithm 2), for any number of steps and any Gaussian path."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from ldm_lightning.diffusion.guidance import Denoise
from ldm_lightning.diffusion.path import GaussianPath
from ldm_lightning.diffusion.sampler.grid import Grid, time_pairs, uniform_grid
from ldm_lightning.rng import Streams

__all__ = ["DDPM"]


@dataclass(frozen=True)
class DDPM:
    """Draw z_s from q(z_s | z_t, z_0 = predicted clean data).

    Attributes:
        steps: number of steps, equal to the number of network evaluations.
        grid: times of the steps.
    """

    steps: int = 250
    grid: Grid = uniform_grid

    @property
    def evaluations(self) -> int:
        """Exact number of network evaluations."""
        return self.steps

    def __call__(self, denoise: Denoise, path: GaussianPath, z: Tensor, streams: Streams) -> Tensor:
        """Turn ``z`` (B, C, *space) from the prior into clean latents of the same shape."""
        for step, (t, s) in enumerate(time_pairs(self.grid, self.steps, path.schedule, z)):
            mean, std = path.posterior(z, denoise(z, t), s, t)
            z = mean + std * streams.normal(f"sampler/{step}", z.shape[1:]).to(z.dtype)
        return z
