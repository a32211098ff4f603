"""What a noise schedule answers."""

from __future__ import annotations

from typing import Protocol

from torch import Tensor

__all__ = ["Schedule"]


class Schedule(Protocol):
    """What a noise schedule answers; every method is elementwise and keeps shape, dtype and device."""

    def alpha_sigma(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """Signal and noise coefficients at time t in [0, 1]; alpha(0) = 1 and sigma(0) = 0 exactly."""
        ...

    def log_snr(self, t: Tensor) -> Tensor:
        """log(alpha^2 / sigma^2), strictly falling in t; +inf at t = 0."""
        ...

    def time(self, log_snr: Tensor) -> Tensor:
        """The t in [0, 1] at which the schedule has this log-SNR; 1 below its last."""
        ...

    def scale(self, log_snr: Tensor) -> tuple[Tensor, Tensor]:
        """Signal and noise coefficients at any log-SNR, also one that the schedule does not reach."""
        ...
