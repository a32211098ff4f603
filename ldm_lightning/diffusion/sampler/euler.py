"""Euler's method on the probability-flow ODE."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from ldm_lightning.diffusion.guidance import Denoise
from ldm_lightning.diffusion.path import GaussianPath
from ldm_lightning.diffusion.sampler.flow_coordinates import scale_and_clock, velocity
from ldm_lightning.diffusion.sampler.grid import Grid, time_pairs, uniform_grid
from ldm_lightning.rng import Streams

__all__ = ["Euler"]


@dataclass(frozen=True)
class Euler:
    """First order, deterministic: z_s = z_t + (s - t) u on the linear flow, and DDIM with eta = 0 on every path.

    Attributes:
        steps: number of steps, equal to the number of network evaluations.
        grid: times of the steps.
    """

    steps: int = 50
    grid: Grid = uniform_grid

    @property
    def evaluations(self) -> int:
        """Exact number of network evaluations."""
        return self.steps

    def __call__(self, denoise: Denoise, path: GaussianPath, z: Tensor, streams: Streams) -> Tensor:
        """Turn ``z`` (B, C, *space) from the prior into clean latents of the same shape."""
        for t, s in time_pairs(self.grid, self.steps, path.schedule, z):
            scale_t, c_t = scale_and_clock(path, t, z)
            scale_s, c_s = scale_and_clock(path, s, z)
            y = z / scale_t
            z = scale_s * (y + (c_s - c_t) * velocity(y, c_t, denoise(z, t)))
        return z
