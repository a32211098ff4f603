"""Latents without doubt: the codes of a quantizer, or whatever else is a function of the picture."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import Tensor

from ldm_lightning.loss import Term
from ldm_lightning.rng import Streams

__all__ = ["PointPosterior"]


@dataclass(frozen=True, eq=False)
class PointPosterior:
    """All mass on one latent.

    Attributes:
        features: (B, C, *space), what was quantized.
        codes: (B, C, *space), what it was quantized to.
        nats: what a latent element costs to be told, under a uniform prior over codes.
        code_numbers: (B, groups, *space) int64, or None where the latents are no codes.
        extra: terms of the loss.
    """

    features: Tensor
    codes: Tensor
    nats: float = 0.0
    code_numbers: Tensor | None = None
    extra: Mapping[str, Term] = field(default_factory=dict)

    def sample(self, streams: Streams) -> Tensor:
        """The codes, exactly; their gradient is passed straight through to the features (Bengio et al. 2013)."""
        return self.codes.detach() + (self.features - self.features.detach())  # the brackets are exactly 0

    def pack(self) -> Tensor:
        """(B, C, *space), the codes."""
        return self.codes

    def mode(self) -> Tensor:
        """The codes."""
        return self.codes

    def kl(self) -> Tensor:
        """(B,) divergence from a uniform choice among all codes, a constant."""
        return self.codes.new_full((len(self.codes),), self.nats)

    def terms(self) -> Mapping[str, Term]:
        """Those that the quantizer brings."""
        return self.extra

    def moments(self) -> tuple[Tensor, Tensor]:
        """A draw and its square: there is no noise."""
        codes = self.codes.double()
        return codes, codes.square()

    def numbers(self) -> Tensor | None:
        """The numbers of the codes."""
        return self.code_numbers
