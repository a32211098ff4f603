r"""Weightings: how much the loss at each time counts.

All are stated as the weight of the error of the *clean data*, the common ground of all predictions, as a function of
SNR = alpha^2 / sigma^2. The error of an output F is that of the clean data divided by :math:`c_{out}^2` (see
:mod:`~ldm_lightning.diffusion.prediction`), and that of the noise is that of the clean data times SNR.

Two of them are, or contain, the weight of the variational bound, which depends on what it is a bound of: of a process
in continuous time, or of one with T steps (Ho et al. 2020, eq. 12; Kingma et al. 2021, eq. 14 and 17),

.. math:: -\tfrac12 \frac{d \, SNR}{d t} \quad\text{at any t, or}\quad
          \tfrac T2 \left(SNR(\tfrac{k-1}T) - SNR(\tfrac kT)\right) \quad\text{at t = k / T}.

Near the clean end the two differ by any factor. At k = 1 the second is infinite: there the last step decodes, by the
Gaussian of :mod:`~ldm_lightning.diffusion.likelihood`, whose squared error weighs :math:`(1 + SNR(1 / T)) / 2`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol, cast

import torch
from torch import Tensor

from ldm_lightning.diffusion.denoiser import Denoiser
from ldm_lightning.diffusion.prediction import Linear
from ldm_lightning.diffusion.schedule import Schedule

__all__ = ["P2", "EdmWeight", "Elbo", "MinSnr", "Sigmoid", "SoftMinSnr", "Unit", "Weighting"]


class Weighting(Protocol):
    """A weight for every sample."""

    def __call__(self, denoiser: Denoiser, t: Tensor) -> Tensor:
        """(B,) weights of the squared error of the network's output at times t."""
        ...


@dataclass(frozen=True)
class Unit:
    """Every time counts the same in the network's own prediction: the "simple" loss (Ho et al. 2020, eq. 14)."""

    def __call__(self, denoiser: Denoiser, t: Tensor) -> Tensor:
        """(B,) ones."""
        return torch.ones_like(t)


@dataclass(frozen=True)
class MinSnr:
    """min(SNR, gamma) (Hang et al. 2023)."""

    gamma: float = 5.0

    def __call__(self, denoiser: Denoiser, t: Tensor) -> Tensor:
        """(B,) weights of the squared error of the network's output at times t."""
        snr, gain = _snr_and_gain(denoiser, t)
        return snr.clamp(max=self.gamma) * gain


@dataclass(frozen=True)
class SoftMinSnr:
    """SNR gamma / (SNR + gamma): min-SNR without its kink (Crowson et al. 2024, "Hourglass diffusion transformers")."""

    gamma: float = 4.0

    def __call__(self, denoiser: Denoiser, t: Tensor) -> Tensor:
        """(B,) weights of the squared error of the network's output at times t."""
        snr, gain = _snr_and_gain(denoiser, t)
        return snr * self.gamma / (snr + self.gamma) * gain


@dataclass(frozen=True)
class P2:
    """SNR / (k + SNR)^gamma: less of the little noise where nothing is left to perceive (Choi et al. 2022, eq. 8)."""

    k: float = 1.0
    gamma: float = 1.0

    def __call__(self, denoiser: Denoiser, t: Tensor) -> Tensor:
        """(B,) weights of the squared error of the network's output at times t."""
        snr, gain = _snr_and_gain(denoiser, t)
        # Not by **, whose bits depend on where in the batch a sample stands.
        return snr * (-self.gamma * (self.k + snr).log()).exp() * gain


@dataclass(frozen=True)
class EdmWeight:
    """SNR + 1 / sigma_data^2, the lambda(sigma) of Karras et al. 2022 (table 1): 1 on the output of prediction=edm."""

    sigma_data: float = 1.0

    def __call__(self, denoiser: Denoiser, t: Tensor) -> Tensor:
        """(B,) weights of the squared error of the network's output at times t."""
        snr, gain = _snr_and_gain(denoiser, t)
        return (snr + self.sigma_data**-2) * gain


@dataclass(frozen=True)
class Elbo:
    """The variational bound's weight: at uniform times the loss is the bound, but for terms without a network.

    Attributes:
        steps: T, where times are k / T alone; None in continuous time. The objective sets it by its law of times.
    """

    steps: int | None = None

    def __call__(self, denoiser: Denoiser, t: Tensor) -> Tensor:
        """(B,) weights of the squared error of the network's output at times t."""
        _, gain = _snr_and_gain(denoiser, t)
        return _elbo(denoiser.path.schedule, t, self.steps) * gain


@dataclass(frozen=True)
class Sigmoid:
    """sigmoid(bias - log SNR) times the variational bound's weight (Kingma & Gao 2023, section 4.1).

    At uniform times the weighted loss does not depend on the schedule, but for its ends.

    Attributes:
        bias: log-SNR of half weight.
        steps: as of :class:`Elbo`.
    """

    bias: float = 2.0
    steps: int | None = None

    def __call__(self, denoiser: Denoiser, t: Tensor) -> Tensor:
        """(B,) weights of the squared error of the network's output at times t."""
        snr, gain = _snr_and_gain(denoiser, t)
        return _elbo(denoiser.path.schedule, t, self.steps) / (1 + snr * math.exp(-self.bias)) * gain


def _snr_and_gain(denoiser: Denoiser, t: Tensor) -> tuple[Tensor, Tensor]:
    """SNR, and what makes of a weight of the clean data's error one of the output's: c_out^2."""
    alpha, sigma = denoiser.path.schedule.alpha_sigma(t)
    _, out = cast("Linear", denoiser.prediction).coefficients(alpha, sigma)  # bits have no schedule to get here with
    return (alpha / sigma).square(), out.square()


def _elbo(schedule: Schedule, t: Tensor, steps: int | None) -> Tensor:
    """The bound's weight of the clean data's squared error, of so many steps or in continuous time."""
    return _slope(schedule, t) if steps is None else _difference(schedule, t, steps)


def _difference(schedule: Schedule, t: Tensor, steps: int) -> Tensor:
    """T (SNR((k - 1) / T) - SNR(k / T)) / 2, and T (1 + SNR(1 / T)) / 2 at k = 1; differences are taken in float64."""
    k = (t.double() * steps).round().clamp(min=1)
    above, below = (
        (alpha / sigma).square() for alpha, sigma in map(schedule.alpha_sigma, ((k - 1) / steps, k / steps))
    )
    return (steps / 2 * torch.where(k > 1, above - below, 1 + below)).to(t.dtype)


def _slope(schedule: Schedule, t: Tensor) -> Tensor:
    """-dSNR/dt / 2 = -SNR dlogSNR/dt / 2; 0 at a purely noisy end, where the latter is infinite."""
    with torch.inference_mode(False), torch.enable_grad():  # validation runs without gradients
        t = t.clone().requires_grad_()
        log_snr = schedule.log_snr(t)
        (slope,) = torch.autograd.grad(log_snr.sum(), t)
    log_snr = log_snr.detach()
    return torch.where(log_snr.isinf(), 0, -log_snr.exp() * slope / 2)
