r"""The objective: at which times a network is trained, how each counts, and how often the condition is withheld.

.. math:: L = E_{t \sim p(t)} \; w(t) \; \| F(z_t, t) - F^*(z_0, \epsilon, t) \|^2

Weightings are stated relative to the loss of the clean data, the common ground of all predictions: the error of an
output F is that of the clean data divided by :math:`c_{out}^2` (see :mod:`~ldm_lightning.diffusion.prediction`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from ldm_lightning.diffusion.denoiser import Denoiser
from ldm_lightning.errors import UserError
from ldm_lightning.rng import Streams

__all__ = ["DiscreteUniform", "LogitNormal", "MinSnr", "Objective", "TimeLaw", "Uniform", "Unit", "Weighting"]


class TimeLaw(Protocol):
    """A distribution of training times."""

    def __call__(self, uniform: Tensor) -> Tensor:
        """Map (B,) uniforms in [0, 1) to (B,) times in (0, 1]."""
        ...


class Weighting(Protocol):
    """A weight for every sample."""

    def __call__(self, denoiser: Denoiser, t: Tensor) -> Tensor:
        """(B,) weights of the squared error of the network's output at times t."""
        ...


@dataclass(frozen=True)
class Uniform:
    """t uniform in (0, 1]."""

    def __call__(self, uniform: Tensor) -> Tensor:
        """Map (B,) uniforms in [0, 1) to (B,) times in (0, 1]."""
        return 1 - uniform


@dataclass(frozen=True)
class DiscreteUniform:
    """t uniform over k / steps, k = 1 .. steps: the times of a DDPM table (Ho et al. 2020)."""

    steps: int = 1000

    def __call__(self, uniform: Tensor) -> Tensor:
        """Map (B,) uniforms in [0, 1) to (B,) times in (0, 1]."""
        return ((uniform * self.steps).floor() + 1) / self.steps


@dataclass(frozen=True)
class LogitNormal:
    """logit(t) ~ N(mean, std^2): more training in the middle of the path (Esser et al. 2024, section 3.1)."""

    mean: float = 0.0
    std: float = 1.0

    def __call__(self, uniform: Tensor) -> Tensor:
        """Map (B,) uniforms in [0, 1) to (B,) times in (0, 1)."""
        # A 24-bit uniform may be exactly 0, whose quantile is -inf.
        quantile = torch.special.ndtri(uniform.clamp(2.0**-25, 1 - 2.0**-24))
        return torch.nn.functional.logsigmoid(self.mean + self.std * quantile).exp()


@dataclass(frozen=True)
class Unit:
    """Every time counts the same in the network's own prediction: the "simple" loss (Ho et al. 2020, eq. 14)."""

    def __call__(self, denoiser: Denoiser, t: Tensor) -> Tensor:
        """(B,) ones."""
        return torch.ones_like(t)


@dataclass(frozen=True)
class MinSnr:
    """min(SNR, gamma) on the error of the clean data (Hang et al. 2023)."""

    gamma: float = 5.0

    def __call__(self, denoiser: Denoiser, t: Tensor) -> Tensor:
        """(B,) weights of the squared error of the network's output at times t."""
        alpha, sigma = denoiser.path.schedule.alpha_sigma(t)
        _, out = denoiser.prediction.coefficients(alpha, sigma)
        return (alpha / sigma).square().clamp(max=self.gamma) * out.square()


@dataclass(frozen=True)
class Objective:
    """Time law, weighting and condition dropout of a training run.

    Attributes:
        time_law: distribution of t.
        weighting: weight of each sample's loss.
        condition_dropout: probability in [0, 1] that a sample's condition is replaced by the null condition, which
            classifier-free guidance needs (Ho & Salimans 2022); usually 0.1.
    """

    time_law: TimeLaw
    weighting: Weighting
    condition_dropout: float = 0.1

    def __post_init__(self) -> None:
        if not 0 <= self.condition_dropout <= 1:
            raise UserError(f"objective.condition_dropout={self.condition_dropout} is a probability: set 0 to 1")

    def loss(self, denoiser: Denoiser, z0: Tensor, condition: Mapping[str, Tensor], streams: Streams) -> Tensor:
        """(B,) weighted losses of the clean latents ``z0`` at random times.

        Args:
            denoiser: the network in training.
            z0: (B, C, *space) standardized latents.
            condition: tensors by name, first dimension B.
            streams: where t, noise and dropout of each sample come from.
        """
        t = self.time_law(streams.uniform("time"))
        noise = denoiser.path.noise(streams, z0.shape[1:])
        drop = streams.uniform("drop") < self.condition_dropout
        output = denoiser(denoiser.path.corrupt(z0, t, noise), t, condition, drop)
        return self.weighting(denoiser, t) * denoiser.path.loss(output, denoiser.target(z0, noise, t))
