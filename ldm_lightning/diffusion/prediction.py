r"""What a network predicts, and how the clean data follow from it.

Every prediction F is a linear combination of clean data and noise, so that

.. math:: z_0 = c_{skip}(t) z_t + c_{out}(t) F(z_t, t).

The denoiser uses these two conversions only; no sampler ever asks which prediction a network makes. A prediction may
also say in which form the network is asked: by default as it is, z_t and t.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from ldm_lightning.diffusion.path import GaussianPath

__all__ = ["Clean", "Edm", "Epsilon", "Flow", "Prediction", "Velocity"]


class Prediction(Protocol):
    """One parameterization; ``alpha`` and ``sigma`` broadcast over the latents."""

    def target(self, z0: Tensor, noise: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        """What the network should answer."""
        ...

    def coefficients(self, alpha: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
        """(c_skip, c_out): clean data = c_skip * z_t + c_out * output."""
        ...

    def question(self, path: GaussianPath, z: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """What the network is given in place of ``z`` and (B,) ``t``."""
        return z, t


@dataclass(frozen=True)
class Epsilon(Prediction):
    """The noise (Ho et al. 2020). Says nothing about the data where alpha is 0."""

    def target(self, z0: Tensor, noise: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        """The noise."""
        return noise

    def coefficients(self, alpha: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
        """z_0 = (z_t - sigma F) / alpha."""
        return 1 / alpha, -sigma / alpha


@dataclass(frozen=True)
class Clean(Prediction):
    """The clean data, "x0"."""

    def target(self, z0: Tensor, noise: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        """The clean data."""
        return z0

    def coefficients(self, alpha: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
        """z_0 = F."""
        return alpha.new_zeros(()), alpha.new_ones(())


@dataclass(frozen=True)
class Velocity(Prediction):
    """v = alpha noise - sigma z_0 (Salimans & Ho 2022)."""

    def target(self, z0: Tensor, noise: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        """The angular velocity v."""
        return alpha * noise - sigma * z0

    def coefficients(self, alpha: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
        """z_0 = (alpha z_t - sigma F) / (alpha^2 + sigma^2)."""
        power = alpha**2 + sigma**2
        return alpha / power, -sigma / power


@dataclass(frozen=True)
class Flow(Prediction):
    """u = noise - z_0, the velocity of the linear flow (Lipman et al. 2022; Liu et al. 2022)."""

    def target(self, z0: Tensor, noise: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        """Noise minus clean data."""
        return noise - z0

    def coefficients(self, alpha: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
        """z_0 = (z_t - sigma F) / (alpha + sigma)."""
        total = alpha + sigma
        return 1 / total, -sigma / total


@dataclass(frozen=True)
class Edm(Prediction):
    r"""The preconditioning of EDM (Karras et al. 2022, table 1), on any Gaussian path that ends above zero signal.

    Stated there for alpha = 1. Since :math:`z_t / \alpha = z_0 + (\sigma / \alpha) \epsilon`, it carries over by
    putting :math:`z_t / \alpha` for its noisy data and :math:`\sigma / \alpha` for its noise level. The network's input
    and its target both have unit variance at all times.

    Attributes:
        sigma_data: standard deviation of the clean data; 1 for standardized latents.
    """

    sigma_data: float = 1.0

    def _scale(self, alpha: Tensor, sigma: Tensor) -> Tensor:
        """Standard deviation of z_t."""
        return (sigma**2 + (self.sigma_data * alpha) ** 2).sqrt()

    def target(self, z0: Tensor, noise: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        """(z_0 - c_skip z_t) / c_out, of unit variance."""
        return (sigma / self.sigma_data * z0 - alpha * self.sigma_data * noise) / self._scale(alpha, sigma)

    def coefficients(self, alpha: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
        """The published c_skip / alpha, and c_out."""
        scale = self._scale(alpha, sigma)
        return self.sigma_data**2 * alpha / scale**2, self.sigma_data * sigma / scale

    def question(self, path: GaussianPath, z: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """c_in z_t of unit variance, and as its time c_noise = log(sigma / alpha) / 4."""
        return z / self._scale(*path.coefficients(t, z)), -path.schedule.log_snr(t) / 8
