"""Variance-preserving schedules in closed form: alpha^2 + sigma^2 = 1."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn.functional import logsigmoid

from ldm_lightning.errors import UserError

__all__ = ["Trigonometric", "VariancePreserving", "unit_circle"]


def unit_circle(log_snr: Tensor) -> tuple[Tensor, Tensor]:
    """The (alpha, sigma) of this log-SNR whose squares add to one."""
    return (logsigmoid(log_snr) / 2).exp(), (logsigmoid(-log_snr) / 2).exp()


class VariancePreserving(nn.Module):
    r"""The continuous limit of the linear DDPM table (Song et al. 2021, "Score-based ...", eq. 32 and 33).

    With :math:`B(t) = \int_0^t \beta = \beta_{min} t + (\beta_{max} - \beta_{min}) t^2 / 2`, alpha = exp(-B / 2).

    Args:
        beta_min: rate of noise at t = 0.
        beta_max: rate of noise at t = 1.

    Raises:
        UserError: the rates do not satisfy 0 < beta_min <= beta_max.
    """

    def __init__(self, beta_min: float = 0.1, beta_max: float = 20.0) -> None:
        super().__init__()
        if not 0 < beta_min <= beta_max < math.inf:
            raise UserError(f"path.schedule: beta_min={beta_min} must be above 0 and at most beta_max={beta_max}")
        self.beta_min = beta_min
        self.beta_rise = beta_max - beta_min

    def _integral(self, t: Tensor) -> Tensor:
        return t * (self.beta_min + t * (self.beta_rise / 2))

    def alpha_sigma(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """Signal and noise coefficients at time t in [0, 1]."""
        integral = self._integral(t)
        return (-integral / 2).exp(), (-torch.expm1(-integral)).sqrt()

    def log_snr(self, t: Tensor) -> Tensor:
        """-log(exp(B) - 1): from +inf at t = 0 to about -beta_max / 2 at t = 1."""
        return -torch.expm1(self._integral(t)).log()

    def time(self, log_snr: Tensor) -> Tensor:
        """The t at which the schedule has this log-SNR; 1 below its last."""
        integral = -logsigmoid(log_snr).clamp(min=-self.beta_min - self.beta_rise / 2)
        # The root of the quadratic in the form that does not cancel for small t.
        t = 2 * integral / (self.beta_min + (self.beta_min**2 + 2 * self.beta_rise * integral).sqrt())
        return t.clamp(max=1)

    def scale(self, log_snr: Tensor) -> tuple[Tensor, Tensor]:
        """The pair whose squares add to one."""
        return unit_circle(log_snr)


class Trigonometric(nn.Module):
    """alpha = cos(pi t / 2), sigma = sin(pi t / 2): constant speed along the circle (Albergo & Vanden-Eijnden 2023)."""

    def alpha_sigma(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """Signal and noise coefficients at time t in [0, 1]."""
        # The sine of the complement: the cosine of the rounded pi / 2 is not 0.
        return ((1 - t) * (math.pi / 2)).sin(), (t * (math.pi / 2)).sin()

    def log_snr(self, t: Tensor) -> Tensor:
        """-2 log tan(pi t / 2): from +inf at t = 0 to -inf at t = 1."""
        alpha, sigma = self.alpha_sigma(t)
        return 2 * (alpha.log() - sigma.log())

    def time(self, log_snr: Tensor) -> Tensor:
        """The t at which the schedule has this log-SNR."""
        return (-log_snr / 2).exp().atan() / (math.pi / 2)

    def scale(self, log_snr: Tensor) -> tuple[Tensor, Tensor]:
        """The pair whose squares add to one."""
        return unit_circle(log_snr)
