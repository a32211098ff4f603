"""Where on the time axis a sampler evaluates the network."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from typing import Protocol

import torch
from torch import Tensor

from ldm_lightning.diffusion.guidance import Denoise
from ldm_lightning.diffusion.path import GaussianPath
from ldm_lightning.diffusion.schedule import Schedule
from ldm_lightning.errors import UserError
from ldm_lightning.rng import Streams

__all__ = ["Grid", "Sampler", "flow_grid", "time_pairs", "uniform_grid"]

Grid = Callable[[int, Schedule], Tensor]


class Sampler(Protocol):
    """A way from noise to clean latents."""

    steps: int

    @property
    def evaluations(self) -> int:
        """Exact number of network evaluations of one call."""
        ...

    def __call__(self, denoise: Denoise, path: GaussianPath, z: Tensor, streams: Streams) -> Tensor:
        """Turn ``z`` (B, C, *space) from the prior into clean latents of the same shape."""
        ...


def uniform_grid(steps: int, schedule: Schedule) -> Tensor:
    """(steps + 1,) float64 times from 1 down to 0, evenly spaced ("trailing": the first is pure noise)."""
    return torch.linspace(1, 0, steps + 1, dtype=torch.float64)


def flow_grid(steps: int, schedule: Schedule) -> Tensor:
    """(steps + 1,) float64 times from 1 to 0 between which sigma / (alpha + sigma) falls by equal amounts.

    This is the time of the linear flow (see :mod:`~ldm_lightning.diffusion.sampler.flow_coordinates`), on which it is
    the same as :func:`uniform_grid`.
    """
    alpha, sigma = schedule.alpha_sigma(torch.ones(1, dtype=torch.float64))
    clock = torch.linspace(1, 0, steps + 1, dtype=torch.float64) * (sigma / (alpha + sigma)).cpu()
    log_snr = 2 * (torch.log1p(-clock) - clock.log())
    times = schedule.time(log_snr.to(alpha.device))
    times[0], times[-1] = 1, 0  # exact ends
    return times


def time_pairs(grid: Grid, steps: int, schedule: Schedule, z: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield (t, s), each (B,) on the device of ``z``, for every step from t down to s; the last s is 0.

    Raises:
        UserError: fewer than one step.
    """
    if steps < 1:
        raise UserError(f"sampler.steps={steps}: at least one step is needed")
    # One transfer, before the loop; times closer than bfloat16 can tell must not merge.
    times = grid(steps, schedule).to(z.device, torch.promote_types(z.dtype, torch.float32))
    yield from itertools.pairwise(times[:, None].expand(-1, z.shape[0]))
