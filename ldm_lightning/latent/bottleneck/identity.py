"""No bottleneck: latents are the encoder's output."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ldm_lightning.errors import UserError
from ldm_lightning.latent.bottleneck.base import Bottleneck
from ldm_lightning.latent.posterior import PointPosterior
from ldm_lightning.latent.scale import LatentScale

__all__ = ["Identity"]


class Identity(Bottleneck):
    """Latents are what they are.

    Args:
        latent_channels: channels of a latent.
        std: what counts as their standard deviation; None for what is measured. Pixels in [-1, 1] have about 0.5
            (Karras et al. 2022).
    """

    def __init__(self, latent_channels: int, std: float | None = 0.5) -> None:
        super().__init__(latent_channels, latent_channels)
        if std is not None and not std > 0:
            raise UserError(f"bottleneck: std={std} must be above 0")
        self.std = std

    def forward(self, features: Tensor) -> PointPosterior:
        """The features."""
        return PointPosterior(features, features)

    def unpack(self, packed: Tensor) -> PointPosterior:
        """From the features."""
        return PointPosterior(packed.float(), packed.float())

    def scale(self, statistics: Mapping[str, Any]) -> LatentScale:
        """Divided by ``std``, or standardized by the measured mean and deviation of each channel."""
        if self.std is None:
            if "std" not in statistics:
                raise UserError("bottleneck: std=null stands for what was measured, and nothing was: set std=0.5")
            return LatentScale.measured(statistics)
        return LatentScale(torch.zeros(self.latent_channels), torch.full((self.latent_channels,), self.std))
