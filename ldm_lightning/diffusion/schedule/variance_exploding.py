r"""The variance-exploding schedule of EDM (Karras et al. 2022): data keep their size, noise grows to many times theirs.

.. math:: \sigma(t)^{1/\rho} = \sigma_{min}^{1/\rho}
          + \frac{t - t_{min}}{1 - t_{min}} (\sigma_{max}^{1/\rho} - \sigma_{min}^{1/\rho})

for :math:`t \ge t_{min}` (eq. 5, as a function of time); below, sigma falls in a straight line to exactly zero at
t = 0. The line continues the curve with its own slope, which fixes :math:`t_{min}` (0.039 for the published numbers).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from ldm_lightning.errors import UserError

__all__ = ["VarianceExploding"]


class VarianceExploding(nn.Module):
    """alpha = 1, sigma from 0 to ``sigma_max``. Its latents at t = 1 are huge: use it with prediction=edm.

    Args:
        sigma_min: noise below which the schedule hurries to zero, in standard deviations of the data.
        sigma_max: noise at t = 1.
        rho: the larger, the more time is spent at little noise; 1 is linear.

    Raises:
        UserError: the numbers do not satisfy 0 < sigma_min < sigma_max and rho >= 1.
    """

    def __init__(self, sigma_min: float = 0.002, sigma_max: float = 80.0, rho: float = 7.0) -> None:
        super().__init__()
        if not (0 < sigma_min < sigma_max < math.inf and 1 <= rho < math.inf):
            raise UserError(
                f"path.schedule: sigma_min={sigma_min}, sigma_max={sigma_max}, rho={rho}: "
                "set 0 < sigma_min < sigma_max and rho at least 1"
            )
        self.sigma_min = sigma_min
        self.sigma_max = sigma_max
        self.rho = rho
        self.root_min = sigma_min ** (1 / rho)
        self.root_rise = sigma_max ** (1 / rho) - self.root_min
        # Equal slopes: sigma_min / t_min = rho sigma_min^(1 - 1/rho) root_rise / (1 - t_min).
        self.t_min = self.root_min / (self.root_min + rho * self.root_rise)

    def _sigma(self, t: Tensor) -> Tensor:
        root = self.root_min + (t - self.t_min) / (1 - self.t_min) * self.root_rise
        curve = _power(root.clamp(min=self.root_min), self.rho)
        return torch.where(t < self.t_min, t * (self.sigma_min / self.t_min), curve)

    def alpha_sigma(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """Signal and noise coefficients at time t in [0, 1]."""
        return torch.ones_like(t), self._sigma(t)

    def log_snr(self, t: Tensor) -> Tensor:
        """-2 log(sigma): from +inf at t = 0 to -2 log(sigma_max) at t = 1."""
        return -2 * self._sigma(t).log()

    def time(self, log_snr: Tensor) -> Tensor:
        """The t at which the schedule has this log-SNR; 1 below its last."""
        sigma = (-log_snr / 2).exp().clamp(max=self.sigma_max)
        share = (_power(sigma.clamp(min=self.sigma_min), 1 / self.rho) - self.root_min) / self.root_rise
        line = sigma * (self.t_min / self.sigma_min)
        return torch.where(sigma < self.sigma_min, line, self.t_min + (1 - self.t_min) * share).clamp(max=1)

    def scale(self, log_snr: Tensor) -> tuple[Tensor, Tensor]:
        """The pair with alpha = 1."""
        return torch.ones_like(log_snr), (-log_snr / 2).exp()


def _power(base: Tensor, exponent: float) -> Tensor:
    """base ** exponent, but to the bit the same whatever the neighbours in the tensor, which torch's own is not."""
    return (exponent * base.log()).exp()
