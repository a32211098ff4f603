"""The linear flow, whose time is a measure of noise for every schedule: sigma / (alpha + sigma)."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import logsigmoid

from ldm_lightning.diffusion.schedule.protocol import Schedule

__all__ = ["LinearFlow", "flow_time"]


def _log_snr(t: Tensor) -> Tensor:
    return 2 * (torch.log1p(-t) - t.log())


def flow_time(schedule: Schedule, c: Tensor) -> Tensor:
    """The time at which a schedule has sigma / (alpha + sigma) = c, as the linear flow has at t = c."""
    return schedule.time(_log_snr(c))


class LinearFlow(nn.Module):
    """alpha = 1 - t, sigma = t: rectified flow / flow matching (Liu et al. 2022; Lipman et al. 2022)."""

    def alpha_sigma(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """Signal and noise coefficients at time t in [0, 1]."""
        return 1 - t, t

    def log_snr(self, t: Tensor) -> Tensor:
        """2 log((1 - t) / t): from +inf at t = 0 to -inf at t = 1."""
        return _log_snr(t)

    def time(self, log_snr: Tensor) -> Tensor:
        """The t at which the schedule has this log-SNR."""
        return logsigmoid(-log_snr / 2).exp()

    def scale(self, log_snr: Tensor) -> tuple[Tensor, Tensor]:
        """The pair that adds to one."""
        return logsigmoid(log_snr / 2).exp(), logsigmoid(-log_snr / 2).exp()
