r"""Finite scalar quantization (Mentzer et al. 2023): each channel is bounded and rounded to a few values.

There is no book to learn, so nothing can collapse. The bound is the published one: with L values, reach
:math:`h = (L - 1)(1 - \epsilon) / 2` and, for even L, offset :math:`o = 1/2` (else 0),

.. math:: f(z) = h \tanh(z + \tan(o / h)) - o,

then rounding, then division by :math:`\lfloor L / 2 \rfloor`, so that codes lie in [-1, 1].
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ldm_lightning.errors import UserError
from ldm_lightning.latent.bottleneck.base import Bottleneck
from ldm_lightning.latent.posterior import PointPosterior
from ldm_lightning.latent.scale import CodeScale, LatentScale, per_channel

__all__ = ["FiniteScalar"]

_EPSILON = 1e-3


class FiniteScalar(Bottleneck):
    """One code of prod(levels) at every place, as one number for each level.

    Args:
        levels: number of values of each latent channel, such as [8, 5, 5, 5] for 1,000 codes. The paper's choices for
            about 2^8, 2^10, 2^12, 2^14, 2^16 codes: [8, 6, 5], [8, 5, 5, 5], [7, 5, 5, 5, 5], [8, 8, 8, 6, 5],
            [8, 8, 8, 5, 5, 5].

    Raises:
        UserError: there are no levels, or one has a single value, or there are more codes than can be counted.
    """

    levels: Tensor
    reach: Tensor
    offset: Tensor
    shift: Tensor
    width: Tensor
    basis: Tensor

    def __init__(self, levels: Sequence[int]) -> None:
        codes = math.prod(levels)
        if not levels or min(levels) < 2 or codes > 2**24:
            raise UserError(f"bottleneck: levels={list(levels)}: give at least 2 values each, and at most 2^24 codes")
        super().__init__(len(levels), len(levels), groups=1, codes=codes)
        values = torch.tensor(levels)
        reach = (values - 1) * (1 - _EPSILON) / 2
        offset = torch.where(values % 2 == 0, 0.5, 0.0)
        constants = {
            "levels": values,
            "reach": reach,
            "offset": offset,
            "shift": (offset / reach).tan(),
            "width": values // 2,
            "basis": torch.tensor([math.prod(levels[:channel]) for channel in range(len(levels))]),
        }
        for name, constant in constants.items():
            self.register_buffer(name, constant, persistent=False)

    def forward(self, features: Tensor) -> PointPosterior:
        """Bound and round the features."""
        reach, offset, shift, width = (
            per_channel(constant, features) for constant in (self.reach, self.offset, self.shift, self.width)
        )
        bounded = (reach * torch.tanh(features + shift) - offset) / width
        codes = self.snap(bounded)
        nats = math.log(self.codes) / self.latent_channels
        return PointPosterior(bounded, codes, nats, self.number(codes))

    def snap(self, latents: Tensor) -> Tensor:
        """The nearest codes of latents (B, C, *space)."""
        levels, width = per_channel(self.levels, latents), per_channel(self.width, latents)
        return torch.clamp((latents * width).round(), min=-width, max=levels - 1 - width) / width

    def number(self, codes: Tensor) -> Tensor:
        """(B, 1, *space) int64 in [0, prod(levels)) of codes (B, C, *space); the first channel counts ones."""
        width, basis = per_channel(self.width, codes), per_channel(self.basis, codes)
        digits = (codes * width).round().long() + width
        return (digits * basis).sum(1, keepdim=True)

    def code(self, numbers: Tensor) -> Tensor:
        """The codes (B, C, *space) of numbers (B, 1, *space)."""
        levels, width, basis = (per_channel(constant, numbers) for constant in (self.levels, self.width, self.basis))
        return (numbers // basis % levels - width) / width

    def unpack(self, packed: Tensor) -> PointPosterior:
        """From codes, which half precision may have moved."""
        codes = self.snap(packed.float())
        return PointPosterior(codes, codes)

    def scale(self, statistics: Mapping[str, Any]) -> CodeScale:
        """Standardized by the measured mean and deviation of each channel."""
        return CodeScale(LatentScale.measured(statistics), self.snap, 1 / self.width)
