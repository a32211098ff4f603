"""One of K vectors, by chance: the relaxed categorical latents of Jang et al. (2017) and Maddison et al. (2017)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import one_hot

from ldm_lightning.loss import Term
from ldm_lightning.rng import Streams

__all__ = ["CategoricalPosterior"]


@dataclass(frozen=True, eq=False)
class CategoricalPosterior:
    """At every place one vector of a book.

    Attributes:
        logits: (B, K, *space).
        book: (K, C).
        temperature: of the relaxation that gives gradients, above 0.
    """

    logits: Tensor
    book: Tensor
    temperature: Tensor

    def _look_up(self, weights: Tensor) -> Tensor:
        """(B, C, *space), the book's vectors weighted by ``weights`` (B, K, *space)."""
        with torch.autocast(weights.device.type, enabled=False):  # half precision would move the vectors
            return torch.einsum("bk...,kc->bc...", weights, self.book)

    def _hard(self, scores: Tensor) -> Tensor:
        """(B, K, *space), 1 at the highest score."""
        return one_hot(scores.argmax(1), scores.shape[1]).movedim(-1, 1).to(scores.dtype)

    def sample(self, streams: Streams) -> Tensor:
        """A draw by the Gumbel-max trick, with the gradient of its softmax relaxation (straight through).

        The forward value is one of the book's vectors, whose gradient is exact.
        """
        uniform = streams.uniform("posterior", self.logits.shape[1:])
        gumbel = -(-uniform.clamp(min=2.0**-25).log()).log()  # half a step from 0 keeps both logarithms finite
        scores = self.logits + gumbel
        soft = (scores / self.temperature).softmax(1)
        return self._look_up(self._hard(scores) + (soft - soft.detach()))  # the brackets are exactly 0

    def pack(self) -> Tensor:
        """(B, K, *space), all that :meth:`sample` needs beside the book: the logits."""
        return self.logits

    def mode(self) -> Tensor:
        """The most probable vectors."""
        return self._look_up(self._hard(self.logits))

    def kl(self) -> Tensor:
        """(B,) divergence from a uniform choice in nats **per latent element**, at most log(K) / C."""
        log_q = self.logits.log_softmax(1)
        places = (log_q.exp() * log_q).sum(1) + math.log(len(self.book))
        return places.flatten(1).mean(1) / self.book.shape[1]

    def terms(self) -> Mapping[str, Term]:
        """None besides the KL."""
        return {}

    def moments(self) -> tuple[Tensor, Tensor]:
        """First and second moment of a draw, elementwise."""
        q, book = self.logits.double().softmax(1), self.book.double()
        first, second = (torch.einsum("bk...,kc->bc...", q, power) for power in (book, book.square()))
        return first, second

    def numbers(self) -> Tensor:
        """(B, 1, *space) numbers of the most probable vectors."""
        return self.logits.argmax(1, keepdim=True)
