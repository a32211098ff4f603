r"""Pseudo linear multistep, PLMS (Liu et al. 2022, "Pseudo numerical methods for diffusion models on manifolds").

The slope of the probability-flow ODE is extrapolated from the last four by the weights of Adams and Bashforth,

.. math:: \bar u = (55 u_n - 59 u_{n-1} + 37 u_{n-2} - 9 u_{n-3}) / 24,

at one evaluation a step. The start-up is that of latent diffusion's PLMS:

- step 1 is of Heun's kind: Euler to its end, a second evaluation there, and again with the mean of both slopes,
- step 2 takes (3, -1) / 2, step 3 takes (23, -16, 5) / 12, all later ones the four above.

With n >= 2 steps this makes n + 1 evaluations. A single step would need the slope at t = 0, which is not defined: it is
an Euler step, of 1 evaluation.

The paper extrapolates the noise, in the clock sigma / alpha (``scale=signal_scale``): far off after a start with little
signal, and impossible from one without. In flow coordinates, the default, this is a true Adams-Bashforth method, of
third order (that of its start-up) on steps evenly spaced in the clock, ``flow_grid``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from ldm_lightning.diffusion.denoised import Denoise
from ldm_lightning.diffusion.needs import Needs
from ldm_lightning.diffusion.path import GaussianPath
from ldm_lightning.diffusion.sampler.grid import Grid, flow_grid
from ldm_lightning.diffusion.sampler.part import WHOLE, Part
from ldm_lightning.diffusion.sampler.trajectory import Scale, coordinates, flow_scale, full_precision, trajectory
from ldm_lightning.rng import Streams

__all__ = ["PLMS"]

_WEIGHTS = ((1.0,), (3 / 2, -1 / 2), (23 / 12, -16 / 12, 5 / 12), (55 / 24, -59 / 24, 37 / 24, -9 / 24))


@dataclass(frozen=True)
class PLMS:
    """Linear multistep of order four after its start-up, deterministic.

    Attributes:
        steps: number of steps; it takes steps + 1 network evaluations, or 1 for a single step.
        grid: times of the steps; the weights are those of even steps.
        scale: coordinates of the ODE; ``signal_scale`` is the published form, for paths with signal at t = 1 only.
    """

    needs: ClassVar[Needs] = Needs(paths=(GaussianPath,))

    steps: int = 50
    grid: Grid = flow_grid
    scale: Scale = flow_scale

    @property
    def evaluations(self) -> int:
        """Exact number of network evaluations."""
        return self.steps + (self.steps > 1)

    @full_precision
    def __call__(self, denoise: Denoise, path: GaussianPath, z: Tensor, streams: Streams, part: Part = WHOLE) -> Tensor:
        """Turn ``z`` (B, C, *space) at the start of ``part`` into latents of the same shape at its stop."""
        slopes: list[Tensor] = []  # latest first
        for t, s in trajectory(self.grid, self.steps, path, z, part):
            (scale_t, c_t), (scale_s, c_s) = coordinates(t, self.scale), coordinates(s, self.scale)
            y = z / scale_t
            slopes = [(y - denoise(z, t).clean) / c_t, *slopes[:3]]
            slope = sum(w * u for w, u in zip(_WEIGHTS[len(slopes) - 1], slopes, strict=True))
            if len(slopes) == 1 and c_s > 0:
                end = y + (c_s - c_t) * slope
                slope = (slope + (end - denoise(scale_s * end, s).clean) / c_s) / 2
            z = scale_s * (y + (c_s - c_t) * slope)
        return z
