"""Continuous latents."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from ldm_lightning.loss import Term
from ldm_lightning.rng import Streams

__all__ = ["GaussianPosterior"]


@dataclass(frozen=True, eq=False)
class GaussianPosterior:
    """Diagonal Gaussian q(z | x) (Kingma & Welling 2014).

    Attributes:
        mean: (B, C, *space).
        log_var: (B, C, *space), natural log of the variance.
    """

    mean: Tensor
    log_var: Tensor

    @classmethod
    def from_parameters(cls, parameters: Tensor) -> GaussianPosterior:
        """Split encoder output (B, 2 C, *space) into mean and log-variance, the latter clamped to [-30, 20]."""
        mean, log_var = parameters.float().chunk(2, dim=1)
        return cls(mean, log_var.clamp(-30.0, 20.0))

    def pack(self) -> Tensor:
        """(B, 2 C, *space), all that :meth:`sample` needs: mean and standard deviation, which half precision suits."""
        return torch.cat([self.mean, torch.exp(0.5 * self.log_var)], dim=1)

    @classmethod
    def unpack(cls, packed: Tensor) -> GaussianPosterior:
        """The posterior that :meth:`pack` made ``packed`` of, whatever its precision now."""
        mean, std = packed.float().chunk(2, dim=1)
        return cls(mean, 2 * std.log())

    def sample(self, streams: Streams) -> Tensor:
        """Reparameterized draw; each sample's noise comes from its own stream."""
        noise = streams.normal("posterior", self.mean.shape[1:])
        return self.mean + torch.exp(0.5 * self.log_var) * noise

    def mode(self) -> Tensor:
        """The most probable latents."""
        return self.mean

    def kl(self) -> Tensor:
        """(B,) divergence from N(0, I) in nats **per latent element**: the weight of a mean does not depend on size."""
        elements = 0.5 * (self.mean.square() + self.log_var.exp() - 1 - self.log_var)
        return elements.flatten(1).mean(1)

    def moments(self) -> tuple[Tensor, Tensor]:
        """First and second moment of a draw, elementwise: E[z] and E[z^2] = mean^2 + variance."""
        mean = self.mean.double()
        return mean, mean.square() + self.log_var.double().exp()

    def terms(self) -> Mapping[str, Term]:
        """None besides the KL."""
        return {}

    def numbers(self) -> None:
        """Latents are continuous."""
