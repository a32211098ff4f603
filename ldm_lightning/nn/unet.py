"""The convolutional backbone: a U-Net over latents.

Residual blocks at falling, then rising resolution, with a skip connection from every block on the way down to its
mirror on the way up (Ho et al. 2020; Dhariwal & Nichol 2021). Time and vector conditions scale and shift every
block; tokens are read by cross-attention after each self-attention (Rombach et al. 2022).

Each change of resolution also changes the number of channels, so a level has one width throughout, every skip of a
level has that width too, and a block on the way up always takes twice its width.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ldm_lightning.errors import UserError
from ldm_lightning.nn.attention import SpatialAttention
from ldm_lightning.nn.context import Context
from ldm_lightning.nn.layers import ResBlock, TimeEmbedding, Upsample, downsample, group_norm, zeroed
from ldm_lightning.nn.space import check_axes, convolution

__all__ = ["UNet"]


class UNet(nn.Module):
    """U-Net for inputs of any size along each of ``space`` axes.

    Args:
        in_channels: channels of the latents.
        channels: width of each level, fine to coarse; the resolution halves between levels.
        blocks: residual blocks of a level on the way down; the way up has one more.
        attention: per level, whether its blocks attend; the coarsest middle always does, so tokens are always read.
        heads: attention heads.
        dropout: in the residual blocks.
        vector_width: width of the context's vector; None for none.
        token_width: width of the context's tokens; None for none.
        out_channels: channels of the output; None for ``in_channels``.
        space: number of axes of the latents: 1, 2 or 3.

    The output is exactly zero before training.

    Raises:
        UserError: ``attention`` and ``channels`` differ in length, or ``heads`` does not divide an attending width.
    """

    def __init__(
        self,
        in_channels: int,
        *,
        channels: Sequence[int] = (64, 128),
        blocks: int = 2,
        attention: Sequence[bool] = (False, True),
        heads: int = 4,
        dropout: float = 0.0,
        vector_width: int | None = None,
        token_width: int | None = None,
        out_channels: int | None = None,
        space: int = 2,
    ) -> None:
        super().__init__()
        if len(attention) != len(channels):
            raise UserError(
                f"attention has {len(attention)} entries but channels has {len(channels)}; give one entry a level"
            )
        self.vector_width, self.token_width, self.space = vector_width, token_width, space
        embedding_width = 4 * channels[0]

        def block(in_width: int, width: int, attend: bool) -> _Block:
            residual = ResBlock(in_width, width, embedding_width, dropout, space=space)
            return _Block(residual, SpatialAttention(width, heads, token_width) if attend else None)

        down: list[nn.Module] = []
        up: list[nn.Module] = []  # fine to coarse, hence from the last layer to the first
        for level, (width, attend) in enumerate(zip(channels, attention, strict=True)):
            if level > 0:
                down.append(downsample(channels[level - 1], width, space=space))
                up.append(Upsample(width, channels[level - 1], space=space))
            down.extend(block(width, width, attend) for _ in range(blocks))
            up.extend(block(2 * width, width, attend) for _ in range(blocks + 1))

        self.embed = TimeEmbedding(embedding_width, vector_width)
        self.conv_in = convolution(space, in_channels, channels[0], 3, padding=1)
        self.down = nn.ModuleList(down)
        self.middle = nn.ModuleList(block(channels[-1], channels[-1], attend) for attend in (True, False))
        self.up = nn.ModuleList(reversed(up))
        self.norm_out = group_norm(channels[0])
        self.conv_out = zeroed(convolution(space, channels[0], out_channels or in_channels, 3, padding=1))

    def forward(self, z: Tensor, t: Tensor, context: Context) -> Tensor:
        """(B, in_channels, *axes) at times (B,) in [0, 1] -> (B, out_channels, *axes).

        Raises:
            UserError: ``z`` has another number of axes than ``space``.
        """
        check_axes(z, self.space)
        embedding = self.embed(t, context)
        h = self.conv_in(z)
        skips = [h]
        for layer in self.down:
            h = layer(h, embedding, context) if isinstance(layer, _Block) else layer(h)
            skips.append(h)
        for layer in self.middle:
            h = layer(h, embedding, context)
        for layer in self.up:
            if isinstance(layer, _Block):
                h = layer(torch.cat([h, skips.pop()], dim=1), embedding, context)
            else:
                # The size comes from the skip, so odd sizes (7 -> 4 -> 7) need no padding.
                h = layer(h, size=skips[-1].shape[2:])
        out: Tensor = self.conv_out(F.silu(self.norm_out(h)))
        return out


class _Block(nn.Module):
    """A residual block and, where the level attends, attention after it."""

    def __init__(self, residual: ResBlock, attention: SpatialAttention | None) -> None:
        super().__init__()
        self.residual, self.attention = residual, attention

    def forward(self, x: Tensor, embedding: Tensor, context: Context) -> Tensor:
        h: Tensor = self.residual(x, embedding)
        return h if self.attention is None else self.attention(h, context)
