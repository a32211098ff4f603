r"""What a network predicts, and how the clean data follow from it.

Every prediction F is a linear combination of clean data and noise, so that

.. math:: z_0 = c_{skip}(t) z_t + c_{out}(t) F(z_t, t).

The denoiser uses these two conversions only; no sampler ever asks which prediction a network makes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

__all__ = ["Clean", "Epsilon", "Flow", "Prediction", "Velocity"]


class Prediction(Protocol):
    """One parameterization; ``alpha`` and ``sigma`` broadcast over the latents."""

    def target(self, z0: Tensor, noise: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        """What the network should answer."""
        ...

    def coefficients(self, alpha: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
        """(c_skip, c_out): clean data = c_skip * z_t + c_out * output."""
        ...


@dataclass(frozen=True)
class Epsilon:
    """The noise (Ho et al. 2020). Says nothing about the data where alpha is 0."""

    def target(self, z0: Tensor, noise: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        """The noise."""
        return noise

    def coefficients(self, alpha: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
        """z_0 = (z_t - sigma F) / alpha."""
        return 1 / alpha, -sigma / alpha


@dataclass(frozen=True)
class Clean:
    """The clean data, "x0"."""

    def target(self, z0: Tensor, noise: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        """The clean data."""
        return z0

    def coefficients(self, alpha: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
        """z_0 = F."""
        return alpha.new_zeros(()), alpha.new_ones(())


@dataclass(frozen=True)
class Velocity:
    """v = alpha noise - sigma z_0 (Salimans & Ho 2022)."""

    def target(self, z0: Tensor, noise: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        """The angular velocity v."""
        return alpha * noise - sigma * z0

    def coefficients(self, alpha: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
        """z_0 = (alpha z_t - sigma F) / (alpha^2 + sigma^2)."""
        power = alpha**2 + sigma**2
        return alpha / power, -sigma / power


@dataclass(frozen=True)
class Flow:
    """u = noise - z_0, the velocity of the linear flow (Lipman et al. 2022; Liu et al. 2022)."""

    def target(self, z0: Tensor, noise: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        """Noise minus clean data."""
        return noise - z0

    def coefficients(self, alpha: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
        """z_0 = (z_t - sigma F) / (alpha + sigma)."""
        total = alpha + sigma
        return 1 / total, -sigma / total
