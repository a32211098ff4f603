"""Euler's method on the probability-flow ODE."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from ldm_lightning.diffusion.denoised import Denoise
from ldm_lightning.diffusion.needs import Needs
from ldm_lightning.diffusion.path import GaussianPath
from ldm_lightning.diffusion.sampler.grid import Grid, uniform_grid
from ldm_lightning.diffusion.sampler.part import WHOLE, Part
from ldm_lightning.diffusion.sampler.trajectory import full_precision, trajectory
from ldm_lightning.rng import Streams

__all__ = ["Euler"]


@dataclass(frozen=True)
class Euler:
    """First order, deterministic: z_s = z_t + (s - t) u on the linear flow, and DDIM with eta = 0 on every path.

    Attributes:
        steps: number of steps, equal to the number of network evaluations.
        grid: times of the steps.
    """

    needs: ClassVar[Needs] = Needs(paths=(GaussianPath,))

    steps: int = 50
    grid: Grid = uniform_grid

    @property
    def evaluations(self) -> int:
        """Exact number of network evaluations."""
        return self.steps

    @full_precision
    def __call__(self, denoise: Denoise, path: GaussianPath, z: Tensor, streams: Streams, part: Part = WHOLE) -> Tensor:
        """Turn ``z`` (B, C, *space) at the start of ``part`` into latents of the same shape at its stop."""
        for t, s in trajectory(self.grid, self.steps, path, z, part):
            kept = s.sigma / t.sigma
            z = kept * z + (s.alpha - kept * t.alpha) * denoise(z, t).clean
        return z
