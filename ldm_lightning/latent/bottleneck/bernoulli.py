"""Random bits (cf. Wang et al. 2023, "Binary latent diffusion")."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from ldm_lightning.latent.bottleneck.base import Bottleneck
from ldm_lightning.latent.codes import bits_per_group
from ldm_lightning.latent.posterior import BernoulliPosterior
from ldm_lightning.latent.scale import BitScale

__all__ = ["Bernoulli"]


class Bernoulli(Bottleneck):
    """A coin for each latent element.

    Args:
        latent_channels: bits of a latent.
    """

    def __init__(self, latent_channels: int) -> None:
        size = bits_per_group(max(1, latent_channels))
        super().__init__(latent_channels, latent_channels, groups=latent_channels // size, codes=2**size)

    def forward(self, features: Tensor) -> BernoulliPosterior:
        """Features are logits."""
        return BernoulliPosterior(features)

    def unpack(self, packed: Tensor) -> BernoulliPosterior:
        """From logits."""
        return BernoulliPosterior(packed.float())

    def scale(self, statistics: Mapping[str, Any]) -> BitScale:
        """Bits stay bits, however often each is 1."""
        return BitScale()
