"""Where on the time axis a sampler evaluates the network."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch import Tensor

from ldm_lightning.diffusion.denoised import Denoise
from ldm_lightning.diffusion.sampler.part import WHOLE, Part
from ldm_lightning.diffusion.schedule import Schedule, flow_time
from ldm_lightning.rng import Streams

__all__ = ["Grid", "Sampler", "flow_grid", "karras_grid", "log_snr_grid", "quadratic_grid", "uniform_grid"]

# Called with a number of steps and a schedule on the CPU.
Grid = Callable[[int, Schedule], Tensor]


class Sampler(Protocol):
    """A way from noise to clean latents; what it needs it declares as :class:`~ldm_lightning.diffusion.needs.Needs`."""

    steps: int

    @property
    def evaluations(self) -> int:
        """Exact number of network evaluations along the whole path; of an adaptive solver, the most it can make."""
        ...

    def __call__(self, denoise: Denoise, path: Any, z: Tensor, streams: Streams, part: Part = WHOLE) -> Tensor:
        """Turn ``z`` (B, C, *space) at the start of ``part`` into latents of the same shape at its stop."""
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
    clock = torch.linspace(1, 0, steps + 1, dtype=torch.float64) * sigma / (alpha + sigma)
    times = flow_time(schedule, clock)
    times[0], times[-1] = 1, 0  # exact ends
    return times


def quadratic_grid(steps: int, schedule: Schedule) -> Tensor:
    """(steps + 1,) float64 times from 1 to 0 whose roots are evenly spaced (Song, Meng & Ermon 2021, appendix D.2)."""
    return torch.linspace(1, 0, steps + 1, dtype=torch.float64) ** 2


def karras_grid(
    steps: int, schedule: Schedule, rho: float = 7.0, smallest: float = 0.002, largest: float = 80.0
) -> Tensor:
    """(steps + 1,) float64 times from 1 to 0 with even steps in (sigma / alpha)^(1 / rho) (Karras et al. 2022, eq. 5).

    Args:
        steps: number of steps.
        schedule: gives the times.
        rho: larger puts more steps near the clean end.
        smallest: sigma / alpha of the last step's start, raised where necessary to that of t = 1 / 1000, the first
            entry of a usual table.
        largest: the steps are laid out from sigma / alpha at t = 1, or from this value where that is larger. The first
            step starts at t = 1 nonetheless.
    """
    low, high = _log_snr_range(schedule, smallest, largest)
    ramp = torch.linspace(0, 1, steps, dtype=torch.float64)
    root = torch.lerp((-low / 2 / rho).exp(), (-high / 2 / rho).exp(), ramp)
    return _times(schedule, -2 * rho * root.log())


def log_snr_grid(steps: int, schedule: Schedule, smallest: float = 0.002, largest: float = 80.0) -> Tensor:
    """(steps + 1,) float64 times from 1 to 0, evenly spaced in log-SNR (Lu et al. 2022) up to the last step's start.

    The range is clipped as in :func:`karras_grid`, of which this is the limit of large rho.
    """
    low, high = _log_snr_range(schedule, smallest, largest)
    return _times(schedule, torch.lerp(low, high, torch.linspace(0, 1, steps, dtype=torch.float64)))


def _log_snr_range(schedule: Schedule, smallest: float, largest: float) -> tuple[Tensor, Tensor]:
    """Log-SNR, () float64, between which steps are laid out: at t = 1 and at t = 1 / 1000, clipped."""
    low, high = schedule.log_snr(torch.tensor([1.0, 1e-3], dtype=torch.float64))
    return low.clamp(min=-2 * math.log(largest)), high.clamp(max=-2 * math.log(smallest))


def _times(schedule: Schedule, log_snr: Tensor) -> Tensor:
    """The times of the starts of all steps, with exact ends."""
    times = schedule.time(log_snr)
    times[0] = 1
    return torch.cat([times, times.new_zeros(1)])
