"""Heun's method on the probability-flow ODE (Karras et al. 2022, algorithm 1)."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from ldm_lightning.diffusion.guidance import Denoise
from ldm_lightning.diffusion.path import GaussianPath
from ldm_lightning.diffusion.sampler.flow_coordinates import scale_and_clock, velocity
from ldm_lightning.diffusion.sampler.grid import Grid, flow_grid, time_pairs
from ldm_lightning.rng import Streams

__all__ = ["Heun"]


@dataclass(frozen=True)
class Heun:
    """Second-order, deterministic; the last step, to t = 0, is an Euler step.

    Attributes:
        steps: number of steps; it takes 2 * steps - 1 network evaluations.
        grid: times of the steps. Evenly spaced ones would cost the second order on DDPM tables, where sigma starts like
            the root of t and the last step, of first order, would dominate the error.
    """

    steps: int = 25
    grid: Grid = flow_grid

    @property
    def evaluations(self) -> int:
        """Exact number of network evaluations."""
        return 2 * self.steps - 1

    def __call__(self, denoise: Denoise, path: GaussianPath, z: Tensor, streams: Streams) -> Tensor:
        """Turn ``z`` (B, C, *space) from the prior into clean latents of the same shape."""
        for step, (t, s) in enumerate(time_pairs(self.grid, self.steps, path.schedule, z), start=1):
            scale_t, c_t = scale_and_clock(path, t, z)
            scale_s, c_s = scale_and_clock(path, s, z)
            y_t = z / scale_t
            slope = velocity(y_t, c_t, denoise(z, t))
            y_s = y_t + (c_s - c_t) * slope
            if step < self.steps:
                slope = (slope + velocity(y_s, c_s, denoise(scale_s * y_s, s))) / 2
                y_s = y_t + (c_s - c_t) * slope
            z = scale_s * y_s
        return z
