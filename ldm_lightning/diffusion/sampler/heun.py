"""Heun's method on the probability-flow ODE (Karras et al. 2022, algorithm 1)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from ldm_lightning.diffusion.denoised import Denoise, Level
from ldm_lightning.diffusion.needs import Needs
from ldm_lightning.diffusion.path import GaussianPath
from ldm_lightning.diffusion.sampler.grid import Grid, flow_grid
from ldm_lightning.diffusion.sampler.part import WHOLE, Part
from ldm_lightning.diffusion.sampler.trajectory import Scale, coordinates, flow_scale, full_precision, trajectory
from ldm_lightning.rng import Streams

__all__ = ["Heun", "heun_step"]


def heun_step(denoise: Denoise, z: Tensor, t: Level, s: Level, scale: Scale) -> Tensor:
    """From z_t to z_s by two network evaluations, or to t = 0, where the slope is not defined, by one."""
    (scale_t, c_t), (scale_s, c_s) = coordinates(t, scale), coordinates(s, scale)
    y_t = z / scale_t
    slope = (y_t - denoise(z, t).clean) / c_t
    y_s = y_t + (c_s - c_t) * slope
    if c_s > 0:
        slope = (slope + (y_s - denoise(scale_s * y_s, s).clean) / c_s) / 2
        y_s = y_t + (c_s - c_t) * slope
    return scale_s * y_s


@dataclass(frozen=True)
class Heun:
    """Second-order, deterministic; the last step, to t = 0, is an Euler step.

    Attributes:
        steps: number of steps; it takes 2 * steps - 1 network evaluations.
        grid: times of the steps. Evenly spaced ones would cost the second order on DDPM tables, where sigma starts like
            the root of t and the last step, of first order, would dominate the error.
        scale: coordinates of the ODE; ``signal_scale`` is the published form, for paths with signal at t = 1 only.
    """

    needs: ClassVar[Needs] = Needs(paths=(GaussianPath,))

    steps: int = 25
    grid: Grid = flow_grid
    scale: Scale = flow_scale

    @property
    def evaluations(self) -> int:
        """Exact number of network evaluations."""
        return 2 * self.steps - 1

    @full_precision
    def __call__(self, denoise: Denoise, path: GaussianPath, z: Tensor, streams: Streams, part: Part = WHOLE) -> Tensor:
        """Turn ``z`` (B, C, *space) at the start of ``part`` into latents of the same shape at its stop."""
        for t, s in trajectory(self.grid, self.steps, path, z, part):
            z = heun_step(denoise, z, t, s, self.scale)
        return z
