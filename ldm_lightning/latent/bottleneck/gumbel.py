"""Relaxed categorical latents (Jang et al. 2017), as in the first stage of DALL-E (Ramesh et al. 2021).

The encoder's output becomes logits over K vectors; one is drawn, and gradients are those of a softmax of falling
temperature. Draws explore the book, and the KL to a uniform choice, weighted by ``loss.kl_weight``, keeps it in use.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ldm_lightning.errors import UserError
from ldm_lightning.latent.bottleneck.base import Bottleneck
from ldm_lightning.latent.bottleneck.nearest import nearest_codes
from ldm_lightning.latent.posterior import CategoricalPosterior
from ldm_lightning.latent.scale import CodeScale, LatentScale

__all__ = ["GumbelSoftmax"]


class GumbelSoftmax(Bottleneck):
    """One of ``codes`` learned vectors at every place.

    Args:
        latent_channels: length of a vector.
        codes: K.
        start: temperature of the first step.
        end: temperature after ``steps`` steps, reached exponentially, and from then on.
        steps: optimizer steps of the fall.

    Raises:
        UserError: a number is out of range.
    """

    temperature: Tensor

    def __init__(
        self, latent_channels: int, codes: int, *, start: float = 1.0, end: float = 0.0625, steps: int = 50_000
    ) -> None:
        super().__init__(latent_channels, latent_channels, groups=1, codes=codes)
        if codes < 2 or not 0 < end <= start or steps < 1:
            raise UserError(
                f"bottleneck: codes={codes} must be at least 2, temperatures fall from start={start} to end={end} "
                f"above 0 in at least 1 of steps={steps}"
            )
        self.start, self.end, self.steps = start, end, steps
        self.logits = nn.Linear(latent_channels, codes)
        self.book = nn.Parameter(torch.randn(codes, latent_channels))
        self.register_buffer("temperature", torch.tensor(start))

    def forward(self, features: Tensor) -> CategoricalPosterior:
        """Features, linearly mapped, are logits."""
        logits = self.logits(features.movedim(1, -1)).movedim(-1, 1)
        return CategoricalPosterior(logits, self.book, self.temperature)

    def advance(self, step: int) -> None:
        """Cool down for the next step."""
        done = min(1.0, (step + 1) / self.steps)
        self.temperature.fill_(self.start * (self.end / self.start) ** done)

    def unpack(self, packed: Tensor) -> CategoricalPosterior:
        """From logits."""
        return CategoricalPosterior(packed.float(), self.book, self.temperature)

    def scale(self, statistics: Mapping[str, Any]) -> CodeScale:
        """Standardized by the measured mean and deviation of each channel."""
        return CodeScale(LatentScale.measured(statistics), self.snap)

    def snap(self, latents: Tensor) -> Tensor:
        """The nearest vectors of latents (B, C, *space)."""
        return nearest_codes(latents, self.book)[0]
