"""Binary latents (cf. Wang et al. 2023, "Binary latent diffusion")."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor
from torch.nn.functional import softplus

from ldm_lightning.latent.codes import number_bits
from ldm_lightning.loss import Term
from ldm_lightning.rng import Streams

__all__ = ["BernoulliPosterior"]


@dataclass(frozen=True, eq=False)
class BernoulliPosterior:
    """Independent bits, 0 or 1, the second with probability sigmoid(logits).

    Attributes:
        logits: (B, C, *space).
    """

    logits: Tensor

    def pack(self) -> Tensor:
        """(B, C, *space), all that :meth:`sample` needs: the logits."""
        return self.logits

    def sample(self, streams: Streams) -> Tensor:
        """Draw bits; their gradient is passed straight through to the probabilities (Bengio et al. 2013).

        That is the gradient of the expected loss where the loss is linear in every bit, and biased elsewhere.
        """
        probability = self.logits.sigmoid()
        bits = (streams.uniform("posterior", self.logits.shape[1:]) < probability).to(probability.dtype)
        return bits + (probability - probability.detach())  # the brackets are exactly 0

    def mode(self) -> Tensor:
        """The most probable bits."""
        return (self.logits > 0).to(self.logits.dtype)

    def kl(self) -> Tensor:
        """(B,) divergence from fair coins in nats **per latent element**, at most log 2."""
        elements = self.logits.sigmoid() * self.logits - softplus(self.logits) + math.log(2)
        return elements.flatten(1).mean(1)

    def moments(self) -> tuple[Tensor, Tensor]:
        """First and second moment of a draw, elementwise: a bit is its own square, so both are its probability."""
        probability = self.logits.double().sigmoid()
        return probability, probability

    def terms(self) -> Mapping[str, Term]:
        """None besides the KL."""
        return {}

    def numbers(self) -> Tensor:
        """(B, groups, *space) numbers of the most probable bits, see :func:`number_bits`."""
        return number_bits(self.logits > 0)
