"""What every posterior answers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

from torch import Tensor

from ldm_lightning.loss import Term
from ldm_lightning.rng import Streams

__all__ = ["Posterior"]


class Posterior(Protocol):
    """A distribution q(z | x) of raw latents z (B, C, *space)."""

    def pack(self) -> Tensor:
        """One tensor (B, P, *space) with all that :meth:`sample` needs; ``Bottleneck.unpack`` reads it."""
        ...

    def sample(self, streams: Streams) -> Tensor:
        """A draw that lets gradients through; each sample's noise comes from its own stream."""
        ...

    def mode(self) -> Tensor:
        """The most probable latents."""
        ...

    def kl(self) -> Tensor:
        """(B,) divergence from the prior in nats **per latent element**: what a latent costs to be told."""
        ...

    def terms(self) -> Mapping[str, Term]:
        """Further terms of the first stage's loss, with their weights."""
        ...

    def moments(self) -> tuple[Tensor, Tensor]:
        """First and second moment of a draw, elementwise, in float64."""
        ...

    def numbers(self) -> Tensor | None:
        """(B, groups, *space) int64, the numbers of the mode's codes; None where latents are continuous."""
        ...
