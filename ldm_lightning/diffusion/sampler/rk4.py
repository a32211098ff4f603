r"""The classical Runge-Kutta method of fourth order on the probability-flow ODE, in flow coordinates.

With y and c of :mod:`~ldm_lightning.diffusion.sampler.flow_coordinates`, a step of width d takes four slopes: at its
start, twice in the middle of its clock, and at its end. The slope at the clean end, c = 0, is 0 / 0, and every explicit
method of order four with four slopes needs it. The last step is therefore Heun's method of third order, whose three
slopes lie at c, 2 c / 3 and c / 3 (weights 1/4, 0, 3/4): its own error is of fourth order, like that of the whole.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from ldm_lightning.diffusion.denoised import Denoise, Level
from ldm_lightning.diffusion.needs import Needs
from ldm_lightning.diffusion.path import GaussianPath
from ldm_lightning.diffusion.sampler.grid import Grid, flow_grid
from ldm_lightning.diffusion.sampler.part import WHOLE, Part
from ldm_lightning.diffusion.sampler.trajectory import (
    coordinates,
    flow_scale,
    full_precision,
    host,
    levels,
    trajectory,
)
from ldm_lightning.diffusion.schedule import flow_time
from ldm_lightning.rng import Streams

__all__ = ["RK4"]


@dataclass(frozen=True)
class RK4:
    """Fourth-order, deterministic: for small errors, as a reference for other samplers.

    Attributes:
        steps: number of steps; it takes 4 * steps - 1 network evaluations: four a step, three in the last.
        grid: times of the steps; the order is seen on steps that are smooth in the clock.
    """

    needs: ClassVar[Needs] = Needs(paths=(GaussianPath,))

    steps: int = 13
    grid: Grid = flow_grid

    @property
    def evaluations(self) -> int:
        """Exact number of network evaluations."""
        return 4 * self.steps - 1

    @full_precision
    def __call__(self, denoise: Denoise, path: GaussianPath, z: Tensor, streams: Streams, part: Part = WHOLE) -> Tensor:
        """Turn ``z`` (B, C, *space) at the start of ``part`` into latents of the same shape at its stop."""

        def slope(y: Tensor, level: Level) -> Tensor:
            scale, clock = coordinates(level, flow_scale)
            return (y - denoise(scale * y, level).clean) / clock

        steps = trajectory(self.grid, self.steps, path, z, part)
        clocks = [(coordinates(t, flow_scale)[1], coordinates(s, flow_scale)[1]) for t, s in steps]
        inner = [(c * 2 / 3, c / 3) if end == 0 else ((c + end) / 2,) for c, end in clocks]
        inside = iter(between(path, [clock for of_step in inner for clock in of_step], z))
        y = z / coordinates(steps[0][0], flow_scale)[0]
        for (t, s), (start, end) in zip(steps, clocks, strict=True):
            width, first, middle = end - start, slope(y, t), next(inside)
            if end == 0:
                early = slope(y + width / 3 * first, middle)
                late = slope(y + width * 2 / 3 * early, next(inside))
                y = y + width / 4 * (first + 3 * late)
            else:
                early = slope(y + width / 2 * first, middle)
                late = slope(y + width / 2 * early, middle)
                last = slope(y + width * late, s)
                y = y + width / 6 * (first + 2 * early + 2 * late + last)
        return coordinates(steps[-1][1], flow_scale)[0] * y


def between(path: GaussianPath, clocks: list[float], z: Tensor) -> list[Level]:
    """The levels at which sigma / (alpha + sigma) has the given values."""
    schedule = host(path.schedule)
    return levels(schedule, flow_time(schedule, torch.tensor(clocks, dtype=torch.float64)), z)
