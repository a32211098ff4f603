"""The bricks of every network here: time embedding, residual block, changes of resolution.

Blocks that end a residual branch start at zero, so that each block begins as the identity and depth costs no
stability (Goyal et al. 2017; Dhariwal & Nichol 2021).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ldm_lightning.errors import UserError
from ldm_lightning.nn.context import Context
from ldm_lightning.nn.space import convolution

__all__ = ["ResBlock", "TimeEmbedding", "Upsample", "downsample", "group_norm", "zeroed"]

_Module = TypeVar("_Module", bound=nn.Linear | nn.Conv1d | nn.Conv2d | nn.Conv3d)


def zeroed(layer: _Module) -> _Module:
    """Set the weight and bias of ``layer`` to zero and return it."""
    nn.init.zeros_(layer.weight)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
    return layer


def group_norm(channels: int) -> nn.GroupNorm:
    """GroupNorm with the most groups (at most 32) that divide ``channels`` and hold at least four channels each."""
    most = max(1, min(32, channels // 4))
    return nn.GroupNorm(next(groups for groups in range(most, 0, -1) if channels % groups == 0), channels)


class TimeEmbedding(nn.Module):
    """(B,) time in [0, 1] and the context's vector -> (B, width) embedding, ready for the blocks' linear maps.

    Sinusoids of 1000 t (Ho et al. 2020, "Denoising diffusion probabilistic models", whose steps run to 1000) pass
    through a two-layer perceptron; the condition is added before the last non-linearity.
    """

    _SINUSOIDS = 256

    def __init__(self, width: int, vector_width: int | None = None) -> None:
        super().__init__()
        self.hidden = nn.Linear(self._SINUSOIDS, width)
        self.out = nn.Linear(width, width)
        self.vector = None if vector_width is None else nn.Linear(vector_width, width)

    def forward(self, t: Tensor, context: Context) -> Tensor:
        """Embed ``t`` (B,) and ``context.vector`` (B, vector_width).

        Raises:
            UserError: the context holds no vector although the network was built for one, or the reverse.
        """
        if (self.vector is None) != (context.vector is None):
            built, given = ("with", "none") if self.vector is not None else ("without", "one")
            raise UserError(
                f"the backbone was built {built} vector_width but the context holds {given}; "
                "give the backbone the conditioner's vector_width"
            )
        # Bfloat16 cannot tell neighbouring times apart: angles are float32, only their sines may be rounded.
        half = self._SINUSOIDS // 2
        frequencies = 1000 * torch.exp(-math.log(10_000) / half * torch.arange(half, device=t.device))
        angles = t.float()[:, None] * frequencies
        sinusoids = torch.cat([angles.cos(), angles.sin()], dim=1).to(self.hidden.weight.dtype)
        embedding: Tensor = self.out(F.silu(self.hidden(sinusoids)))
        if self.vector is not None:
            embedding = embedding + self.vector(context.vector)
        return F.silu(embedding)


class ResBlock(nn.Module):
    """Residual block of two convolutions of side 3: norm, SiLU, convolution; norm, SiLU, dropout, convolution.

    With ``embedding_width`` the second norm is adaptive: the embedding scales and shifts it (AdaGN, Dhariwal &
    Nichol 2021, Eq. 3).
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        embedding_width: int | None = None,
        dropout: float = 0.0,
        *,
        space: int = 2,
    ) -> None:
        super().__init__()
        self.norm_in = group_norm(in_channels)
        self.conv_in = convolution(space, in_channels, out_channels, 3, padding=1)
        self.modulation = None if embedding_width is None else nn.Linear(embedding_width, 2 * out_channels)
        self.norm_out = group_norm(out_channels)
        self.dropout = nn.Dropout(dropout)
        self.conv_out = zeroed(convolution(space, out_channels, out_channels, 3, padding=1))
        self.skip: nn.Module = (
            nn.Identity() if in_channels == out_channels else convolution(space, in_channels, out_channels, 1)
        )

    def forward(self, x: Tensor, embedding: Tensor | None = None) -> Tensor:
        """(B, in_channels, *axes) and (B, embedding_width) -> (B, out_channels, *axes)."""
        h = self.norm_out(self.conv_in(F.silu(self.norm_in(x))))
        if self.modulation is not None:
            scale, shift = self.modulation(embedding).unflatten(1, (-1, *[1] * (x.ndim - 2))).chunk(2, dim=1)
            h = h * (1 + scale) + shift
        out: Tensor = self.skip(x) + self.conv_out(self.dropout(F.silu(h)))
        return out


def downsample(in_channels: int, out_channels: int, *, space: int = 2) -> nn.Module:
    """(B, in_channels, *axes) -> (B, out_channels, *ceil(axes / 2)) by a strided convolution."""
    return convolution(space, in_channels, out_channels, 3, stride=2, padding=1)


class Upsample(nn.Module):
    """Nearest-neighbour resize and a convolution, which leaves no checkerboard (Odena et al. 2016)."""

    def __init__(self, in_channels: int, out_channels: int, *, space: int = 2) -> None:
        super().__init__()
        self.conv = convolution(space, in_channels, out_channels, 3, padding=1)

    def forward(self, x: Tensor, size: Sequence[int] | None = None) -> Tensor:
        """(B, in_channels, *axes) -> (B, out_channels, *size); ``size`` is twice the axes unless given."""
        sides = list(size or (2 * side for side in x.shape[2:]))
        out: Tensor = self.conv(F.interpolate(x, size=sides, mode="nearest"))
        return out
