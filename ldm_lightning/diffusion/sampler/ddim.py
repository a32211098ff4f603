"""DDIM (Song, Meng & Ermon 2021)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from ldm_lightning.diffusion.denoised import Denoise
from ldm_lightning.diffusion.needs import Needs
from ldm_lightning.diffusion.path import GaussianPath
from ldm_lightning.diffusion.sampler.grid import Grid, uniform_grid
from ldm_lightning.diffusion.sampler.part import WHOLE, Part
from ldm_lightning.diffusion.sampler.trajectory import FreshNoise, full_precision, step_size, trajectory
from ldm_lightning.errors import UserError
from ldm_lightning.rng import Streams

__all__ = ["DDIM"]


@dataclass(frozen=True)
class DDIM:
    """Re-noise the predicted clean data along the predicted noise (eq. 12), with ``eta`` times the fresh noise of DDPM.

    Attributes:
        steps: number of steps, equal to the number of network evaluations.
        eta: factor in [0, 1] on the standard deviation of the fresh noise: 0 deterministic, 1 ancestral sampling.
        grid: times of the steps.
    """

    needs: ClassVar[Needs] = Needs(paths=(GaussianPath,))

    steps: int = 50
    eta: float = 0.0
    grid: Grid = uniform_grid

    def __post_init__(self) -> None:
        if not 0 <= self.eta <= 1:
            raise UserError(f"sampler.eta={self.eta}: set it from 0 (deterministic) to 1 (as much noise as DDPM)")

    @property
    def evaluations(self) -> int:
        """Exact number of network evaluations."""
        return self.steps

    @full_precision
    def __call__(self, denoise: Denoise, path: GaussianPath, z: Tensor, streams: Streams, part: Part = WHOLE) -> Tensor:
        """Turn ``z`` (B, C, *space) at the start of ``part`` into latents of the same shape at its stop."""
        noise = FreshNoise(streams, z, part)
        for step, (t, s) in enumerate(trajectory(self.grid, self.steps, path, z, part)):
            clean = denoise(z, t).clean
            fresh = self.eta * s.sigma * math.sqrt(-math.expm1(-2 * step_size(t, s)))
            kept = math.sqrt(s.sigma**2 - fresh**2) / t.sigma
            z = noise.add(kept * z + (s.alpha - kept * t.alpha) * clean, fresh, step)
        return z
