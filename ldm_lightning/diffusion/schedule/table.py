r"""A discrete DDPM table as a schedule.

Of a table of T variances, entry k sits at t = k / T; in between :math:`\lambda` is interpolated linearly. It is
infinite at a clean or at a purely noisy end, so that there something else is linear: below the first entry the noise
variance falls to exactly zero at t = 0, and above the last but one of a table that ends in pure noise alpha falls to
exactly zero at t = 1.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from ldm_lightning.diffusion.schedule.variance_preserving import unit_circle
from ldm_lightning.errors import UserError
from ldm_lightning.precision import KeepsPrecision

__all__ = ["TableSchedule"]


class TableSchedule(KeepsPrecision):
    r"""A variance-preserving schedule read from a DDPM table (Ho et al. 2020).

    With :math:`\bar\alpha_k = \prod_{i \le k} (1 - \beta_i)`: alpha(k / T) is its root, sigma(k / T) the root of
    :math:`1 - \bar\alpha_k`.

    Args:
        betas: (T,) variances in (0, 1) of the T forward steps; the last may be 1 (pure noise).

    Raises:
        UserError: fewer than two entries, or one outside (0, 1).
    """

    log_snr_table: Tensor

    def __init__(self, betas: Tensor) -> None:
        super().__init__()
        betas = torch.as_tensor(betas, dtype=torch.float64)
        inside = (betas > 0) & (betas < 1)
        if betas.ndim != 1 or len(betas) < 2 or not (bool(inside[:-1].all()) and 0 < float(betas[-1]) <= 1):
            raise UserError("a schedule table needs at least two variances, each above 0 and below 1 (the last: or 1)")
        self.steps = len(betas)
        self.first_beta = float(betas[0])
        log_alpha_bar = torch.log1p(-betas).cumsum(0)
        log_snr = log_alpha_bar - torch.log(-torch.expm1(log_alpha_bar))
        # alpha at the last but one entry, if it falls from there to 0.
        self.last_alpha = math.exp(float(log_alpha_bar[-2]) / 2) if betas[-1] == 1 else None
        if self.last_alpha is not None:
            log_snr[-1] = log_snr[-2] - 1
        # Finite stand-ins for the infinite ends, which nobody reads, keep the interpolation free of NaN.
        self.register_buffer("log_snr_table", torch.cat([log_snr[:1], log_snr]), persistent=False)

    def _table(self, like: Tensor) -> Tensor:
        """The table in the precision of ``like``, but at least single: in bfloat16 close entries are equal."""
        return self.log_snr_table.to(torch.promote_types(like.dtype, torch.float32))

    def _log_snr(self, t: Tensor) -> Tensor:
        table = self._table(t)
        t = t.to(table.dtype)
        position = t * self.steps
        left = position.detach().floor().long().clamp(0, self.steps - 1)
        between = torch.lerp(table[left], table[left + 1], position - left)
        variance = position.clamp(max=1) * self.first_beta
        log_snr = torch.where(position < 1, torch.log1p(-variance) - variance.log(), between)
        if self.last_alpha is None:
            return log_snr
        left_over = ((1 - t) * self.steps).clamp(max=1)
        alpha = left_over * self.last_alpha
        return torch.where(left_over < 1, 2 * alpha.log() - torch.log1p(-(alpha**2)), log_snr)

    def log_snr(self, t: Tensor) -> Tensor:
        """Log-SNR at time t in [0, 1], interpolated between table entries."""
        return self._log_snr(t).to(t.dtype)

    def alpha_sigma(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """Signal and noise coefficients at time t in [0, 1]; their squares add to one."""
        alpha, sigma = unit_circle(self._log_snr(t))
        return alpha.to(t.dtype), sigma.to(t.dtype)

    def time(self, log_snr: Tensor) -> Tensor:
        """The t at which the interpolated table has this log-SNR; 1 below the table's last entry."""
        falling, dtype = self._table(log_snr), log_snr.dtype
        log_snr = log_snr.to(falling.dtype)
        right = torch.searchsorted(-falling[1:], -log_snr.detach()).clamp(1, self.steps - 1) + 1
        share = (log_snr - falling[right - 1]) / (falling[right] - falling[right - 1])
        first = logsigmoid(-log_snr).exp() / self.first_beta
        position = torch.where(log_snr > falling[1], first, right - 1 + share)
        t = (position / self.steps).clamp(0, 1)
        if self.last_alpha is not None:
            left_over = unit_circle(log_snr)[0] / self.last_alpha
            t = torch.where(log_snr < falling[-2], 1 - left_over / self.steps, t)
        return t.to(dtype)

    def scale(self, log_snr: Tensor) -> tuple[Tensor, Tensor]:
        """The pair whose squares add to one."""
        return unit_circle(log_snr)
