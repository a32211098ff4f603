"""Continuous latents (Kingma & Welling 2014; Rombach et al. 2022)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from ldm_lightning.latent.bottleneck.base import Bottleneck
from ldm_lightning.latent.posterior import GaussianPosterior
from ldm_lightning.latent.scale import LatentScale

__all__ = ["Gaussian"]


class Gaussian(Bottleneck):
    """A mean and a variance for each latent element.

    Args:
        latent_channels: channels of a latent.
    """

    def __init__(self, latent_channels: int) -> None:
        super().__init__(latent_channels, 2 * latent_channels)

    def forward(self, features: Tensor) -> GaussianPosterior:
        """The first half of the channels are means, the second log-variances."""
        return GaussianPosterior.from_parameters(features)

    def unpack(self, packed: Tensor) -> GaussianPosterior:
        """From means and standard deviations."""
        return GaussianPosterior.unpack(packed)

    def scale(self, statistics: Mapping[str, Any]) -> LatentScale:
        """Standardized by the measured mean and deviation of each channel."""
        return LatentScale.measured(statistics)
