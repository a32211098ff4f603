"""Guidance in a limited interval (Kynkäänniemi et al. 2024): only where it helps, at the price of one model elsewhere.

At high noise guidance drives all samples to the same few places, at low noise it does nothing; outside the interval
the plain conditional model answers alone.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from ldm_lightning.diffusion.denoised import Denoised, Guided, Level
from ldm_lightning.errors import UserError, nearest

__all__ = ["Interval", "Limited"]

_CLOCKS = ("time", "log_snr")


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

    def contains(self, level: Level) -> bool:
        """Whether a level lies inside.

        Raises:
            UserError: the path has no log-SNR.
        """
        place = level.value if self.of == "time" else level.log_snr
        if math.isnan(place):
            raise UserError(f"guidance.interval.of={self.of} is not known on this path: set it to time")
        # In single precision, as the network is told: a step at 3 * 0.1 lies at the end 0.3, not beyond it.
        low, place, high = (float(np.float32(number)) for number in (self.low, place, self.high))
        return low <= place <= high


@dataclass(frozen=True)
class Limited:
    """Guided inside the interval, plain outside."""

    guided: Guided
    plain: Guided
    interval: Interval

    def __call__(self, z: Tensor, level: Level, estimate: Tensor | None = None) -> Denoised:
        """Answer as one of the two."""
        return (self.guided if self.interval.contains(level) else self.plain)(z, level, estimate)
