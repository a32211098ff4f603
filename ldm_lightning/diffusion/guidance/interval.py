"""Guidance in a limited interval (Kynkäänniemi et al. 2024): only where it helps, at the price of one model elsewhere.

At high noise guidance drives all samples to the same few places, at low noise it does nothing; outside the interval
the plain conditional model answers alone.

Which of the two to call is decided on the host, but times live on the device, and asking for their value would make the
host wait for all the work it has handed out. Yet a sampler's times depend on its steps and on the path alone. So
:func:`foresee` runs the sampler once on a single number, with a denoiser that only writes down when it is called, reads
all those times at once before the real loop starts, and leaves nothing to ask inside it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from ldm_lightning.diffusion.guidance.denoise import Denoise
from ldm_lightning.diffusion.path import Path
from ldm_lightning.diffusion.schedule import Schedule
from ldm_lightning.errors import UserError, nearest
from ldm_lightning.rng import Streams

__all__ = ["Interval", "Limited", "foresee"]

_CLOCKS: dict[str, Callable[[Schedule, Tensor], Tensor]] = {
    "time": lambda schedule, t: t,
    "log_snr": lambda schedule, t: schedule.log_snr(t),
}


@dataclass(frozen=True)
class Interval:
    """A part of the path, ends included.

    Attributes:
        low: lower end.
        high: upper end.
        of: "time" (0 clean, 1 noise) or "log_snr", log(alpha^2 / sigma^2), which means the same on every path: the
            paper's noise levels sigma, at alpha = 1, are -2 log(sigma).

    Raises:
        UserError: the ends the wrong way round, or another clock.
    """

    low: float
    high: float
    of: str = "time"

    def __post_init__(self) -> None:
        if self.of not in _CLOCKS:
            raise UserError(f"guidance.interval.of={self.of}: choose time or log_snr{nearest(self.of, _CLOCKS)}")
        if not self.low < self.high:
            raise UserError(f"guidance.interval: low={self.low} must be below high={self.high}")

    def contains(self, t: Tensor, schedule: Schedule) -> Tensor:
        """Elementwise, whether times t lie inside; bool, on the device of ``t``."""
        clock = _CLOCKS[self.of](schedule, t)
        return (self.low <= clock) & (clock <= self.high)


@dataclass(frozen=True)
class Limited:
    """Guided inside the interval, plain outside. It reads t, so on a GPU it waits: see :func:`foresee`."""

    guided: Denoise
    plain: Denoise
    interval: Interval
    schedule: Schedule

    def __call__(self, z: Tensor, t: Tensor) -> Tensor:
        """(z, t) -> clean latents."""
        inside = bool(self.interval.contains(t[:1], self.schedule))
        return (self.guided if inside else self.plain)(z, t)


class _Sampler(Protocol):
    @property
    def evaluations(self) -> int: ...

    def __call__(self, denoise: Denoise, path: Any, z: Tensor, streams: Streams) -> Tensor: ...


class _Diary:
    """A denoise function that only writes down when it is called."""

    def __init__(self, z: Tensor) -> None:
        self.times: list[Tensor] = []
        self.fraction = z.new_zeros(())  # for a sampler that asks for a learned variance

    def __call__(self, z: Tensor, t: Tensor) -> Tensor:
        self.times.append(t[0])
        return torch.zeros_like(z)


def foresee(denoise: Denoise, sampler: _Sampler, path: Path, z: Tensor) -> Denoise:
    """``denoise`` for one run of ``sampler`` from ``z``, without a need to read t inside its loop.

    Only limited guidance needs it; any other function is returned as it is, and so is one for a sampler that finds its
    times on the way (an adaptive one, which waits for the device anyway).
    """
    if not isinstance(denoise, Limited):
        return denoise
    diary = _Diary(z)
    sampler(diary, path, z.new_ones(1, 1), Streams(0, torch.zeros(1, dtype=torch.int64, device=z.device)))
    if len(diary.times) != sampler.evaluations:
        return denoise
    inside = iter(denoise.interval.contains(torch.stack(diary.times), denoise.schedule).tolist())

    def foreseen(z: Tensor, t: Tensor) -> Tensor:
        return (denoise.guided if next(inside) else denoise.plain)(z, t)

    return foreseen
