r"""Noise schedules: how much signal and how much noise a latent holds at time t.

A schedule maps time t in [0, 1] (0 is clean, 1 is noise) to the two coefficients of

.. math:: z_t = \alpha(t) z_0 + \sigma(t) \epsilon, \qquad \epsilon \sim N(0, I)

and is identified by its log signal-to-noise ratio :math:`\lambda(t) = \log \alpha^2 / \sigma^2`, which falls strictly
with t (Kingma et al. 2021, "Variational diffusion models"). Everything else in this room asks a schedule only
:meth:`~Schedule.alpha_sigma`, :meth:`~Schedule.log_snr` and the inverse :meth:`~Schedule.time`.

A discrete DDPM table of T variances is a schedule too: table entry k sits at t = k / T, in between :math:`\lambda` is
interpolated linearly, and below the first entry the noise variance falls linearly to exactly zero at t = 0.
"""

from __future__ import annotations

import math
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.nn.functional import logsigmoid

from ldm_lightning.errors import UserError

__all__ = [
    "LinearFlow",
    "Schedule",
    "TableSchedule",
    "cosine_betas",
    "linear_betas",
    "scaled_linear_betas",
]


class Schedule(Protocol):
    """What a noise schedule answers; every method is elementwise and keeps shape, dtype and device."""

    def alpha_sigma(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """Signal and noise coefficients at time t in [0, 1]; alpha(0) = 1 and sigma(0) = 0 exactly."""
        ...

    def log_snr(self, t: Tensor) -> Tensor:
        """log(alpha^2 / sigma^2), strictly falling in t; +inf at t = 0."""
        ...

    def time(self, log_snr: Tensor) -> Tensor:
        """The t in [0, 1] at which the schedule has this log-SNR."""
        ...


class LinearFlow(nn.Module):
    """alpha = 1 - t, sigma = t: rectified flow / flow matching (Liu et al. 2022; Lipman et al. 2022)."""

    def alpha_sigma(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """Signal and noise coefficients at time t in [0, 1]."""
        return 1 - t, t

    def log_snr(self, t: Tensor) -> Tensor:
        """2 log((1 - t) / t): from +inf at t = 0 to -inf at t = 1."""
        return 2 * (torch.log1p(-t) - t.log())

    def time(self, log_snr: Tensor) -> Tensor:
        """The t at which the schedule has this log-SNR."""
        return logsigmoid(-log_snr / 2).exp()


class TableSchedule(nn.Module):
    r"""A variance-preserving schedule read from a DDPM table (Ho et al. 2020).

    With :math:`\bar\alpha_k = \prod_{i \le k} (1 - \beta_i)`: alpha(k / T) is its root, sigma(k / T) the root of
    :math:`1 - \bar\alpha_k`.

    Args:
        betas: (T,) variances in (0, 1) of the T forward steps.

    Raises:
        UserError: fewer than two entries, or one outside (0, 1).
    """

    log_snr_table: Tensor

    def __init__(self, betas: Tensor) -> None:
        super().__init__()
        betas = torch.as_tensor(betas, dtype=torch.float64)
        if betas.ndim != 1 or len(betas) < 2 or not bool(((betas > 0) & (betas < 1)).all()):
            raise UserError("a schedule table needs at least two variances, each above 0 and below 1")
        log_alpha_bar = torch.log1p(-betas).cumsum(0)
        log_snr = log_alpha_bar - torch.log(-torch.expm1(log_alpha_bar))
        # Entry 0 stands for t = 0, where the value is +inf; a finite stand-in keeps the interpolation free of NaN.
        self.register_buffer("log_snr_table", torch.cat([log_snr[:1], log_snr]), persistent=False)
        self.first_beta = float(betas[0])
        self.steps = len(betas)

    def log_snr(self, t: Tensor) -> Tensor:
        """Log-SNR at time t in [0, 1], interpolated between table entries."""
        table = self.log_snr_table.to(t.dtype)
        position = t * self.steps
        left = position.detach().floor().long().clamp(0, self.steps - 1)
        between = torch.lerp(table[left], table[left + 1], position - left)
        variance = position.clamp(max=1) * self.first_beta
        return torch.where(position < 1, torch.log1p(-variance) - variance.log(), between)

    def alpha_sigma(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """Signal and noise coefficients at time t in [0, 1]; their squares add to one."""
        log_snr = self.log_snr(t)
        return (logsigmoid(log_snr) / 2).exp(), (logsigmoid(-log_snr) / 2).exp()

    def time(self, log_snr: Tensor) -> Tensor:
        """The t at which the interpolated table has this log-SNR; 1 below the table's last entry."""
        falling = self.log_snr_table.to(log_snr.dtype)
        right = torch.searchsorted(-falling[1:], -log_snr.detach()).clamp(1, self.steps - 1) + 1
        share = (log_snr - falling[right - 1]) / (falling[right] - falling[right - 1])
        first = logsigmoid(-log_snr).exp() / self.first_beta
        position = torch.where(log_snr > falling[1], first, right - 1 + share)
        return (position / self.steps).clamp(0, 1)


def linear_betas(steps: int = 1000, first: float = 1e-4, last: float = 0.02) -> Tensor:
    """(T,) variances rising linearly (Ho et al. 2020); the ends are those of 1000 steps and not rescaled for others."""
    return torch.linspace(first, last, steps, dtype=torch.float64)


def scaled_linear_betas(steps: int = 1000, first: float = 0.00085, last: float = 0.012) -> Tensor:
    """(T,) variances whose roots rise linearly: the schedule of latent diffusion (Rombach et al. 2022)."""
    return torch.linspace(first**0.5, last**0.5, steps, dtype=torch.float64) ** 2


def cosine_betas(steps: int = 1000, offset: float = 0.008, largest: float = 0.999) -> Tensor:
    """(T,) variances of the cosine schedule, each capped at ``largest`` (Nichol & Dhariwal 2021, eq. 17)."""
    angle = (torch.arange(steps + 1, dtype=torch.float64) / steps + offset) / (1 + offset) * math.pi / 2
    alpha_bar = angle.cos() ** 2
    return (1 - alpha_bar[1:] / alpha_bar[:-1]).clamp(max=largest)
