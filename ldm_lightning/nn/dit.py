"""The transformer backbone: DiT with adaLN-Zero.

Latents are cut into patches, each patch is a token, and blocks of attention and perceptron run over them. Time and
vector conditions enter only as scale, shift and gate of the norms; gates start at zero, so every block starts as the
identity (Peebles & Xie 2023, "Scalable diffusion models with transformers", Sec. 3.2). Tokens are read by
cross-attention between self-attention and perceptron (Chen et al. 2023, "PixArt-alpha", Sec. 2.3).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ldm_lightning.errors import UserError
from ldm_lightning.nn.attention import CrossAttention, SelfAttention
from ldm_lightning.nn.context import Context
from ldm_lightning.nn.layers import TimeEmbedding, zeroed
from ldm_lightning.nn.space import check_axes, fold, shape_text, unfold

__all__ = ["DiT", "position_embedding"]


def position_embedding(sides: Sequence[int], channels: int, device: torch.device | None = None) -> Tensor:
    """Sine-cosine embedding of a grid with any number of axes (Peebles & Xie 2023; Vaswani et al. 2017).

    Every axis in turn has the sines, then the cosines of its positions in an equal share of the channels (for pictures
    a quarter each); channels that cannot be shared equally stay zero. It is made anew in every forward pass: the
    sinusoids are one-dimensional and cost less than the look-up in a cache would save.

    Args:
        sides: of the grid.
        channels: at least two an axis.
        device: where the embedding is made.

    Returns:
        (product of the sides, channels) float32.
    """
    share = channels // (2 * len(sides))
    frequencies = torch.exp(-math.log(10_000) / share * torch.arange(share, device=device))
    parts = []
    for axis, side in enumerate(sides):
        angles = torch.arange(side, device=device)[:, None] * frequencies
        own = torch.cat([angles.sin(), angles.cos()], dim=1)
        parts.append(own.view(*(side if other == axis else 1 for other in range(len(sides))), -1).expand(*sides, -1))
    rest = torch.zeros(*sides, channels - 2 * share * len(sides), device=device)
    return torch.cat([*parts, rest], dim=-1).flatten(0, -2)


class DiT(nn.Module):
    """Diffusion transformer for inputs whose sides are multiples of ``patch``, along each of ``space`` axes.

    Args:
        in_channels: channels of the latents.
        patch: side of a patch in positions of the latent; one number for all axes, or one for each.
        width: channels of a token, divisible by ``heads``, at least two for each axis.
        depth: number of blocks.
        heads: attention heads.
        mlp_ratio: width of the perceptron over ``width``.
        dropout: after attention and perceptron.
        vector_width: width of the context's vector; None for none.
        token_width: width of the context's tokens; None for none.
        out_channels: channels of the output; None for ``in_channels``.
        space: number of axes of the latents: 1, 2 or 3.

    The output is exactly zero before training.

    Raises:
        UserError: ``width`` is not as said, or there are not as many patch sides as axes.
    """

    def __init__(
        self,
        in_channels: int,
        *,
        patch: int | Sequence[int] = 1,
        width: int = 256,
        depth: int = 6,
        heads: int = 4,
        mlp_ratio: float = 4,
        dropout: float = 0.0,
        vector_width: int | None = None,
        token_width: int | None = None,
        out_channels: int | None = None,
        space: int = 2,
    ) -> None:
        super().__init__()
        self.patch = (patch,) * space if isinstance(patch, int) else tuple(patch)
        if len(self.patch) != space or min(self.patch) < 1:
            raise UserError(f"patch={patch} for space={space}: give one number of at least 1, or one for each axis")
        if width < 2 * space:
            raise UserError(f"DiT width {width} is too small to tell positions apart; use width={2 * space} or more")
        self.vector_width, self.token_width, self.space = vector_width, token_width, space
        self.embed = TimeEmbedding(width, vector_width)
        block = math.prod(self.patch)
        self.patchify = nn.Linear(in_channels * block, width)
        self.blocks = nn.ModuleList(_Block(width, heads, mlp_ratio, dropout, token_width) for _ in range(depth))
        self.norm_out = nn.LayerNorm(width, elementwise_affine=False)
        self.modulation = zeroed(nn.Linear(width, 2 * width))
        self.unpatchify = zeroed(nn.Linear(width, (out_channels or in_channels) * block))

    def forward(self, z: Tensor, t: Tensor, context: Context) -> Tensor:
        """(B, in_channels, *axes) at times (B,) in [0, 1] -> (B, out_channels, *axes).

        Raises:
            UserError: another number of axes than ``space``, or ``patch`` does not divide them.
        """
        check_axes(z, self.space)
        sides = z.shape[2:]
        if any(side % patch for side, patch in zip(sides, self.patch, strict=True)):
            raise UserError(
                f"latents of {shape_text(sides)} cannot be cut into patches of {shape_text(self.patch)}; "
                f"use patch={math.gcd(*sides, *self.patch)} or another size"
            )
        embedding = self.embed(t, context)
        # Patches by folding and a linear map: the same function as a strided convolution, and faster on a CPU.
        patches = fold(z, self.patch)
        grid = patches.shape[2:]
        h = self.patchify(patches.flatten(2).transpose(1, 2))
        h = h + position_embedding(grid, h.shape[2], h.device).to(h.dtype)
        for block in self.blocks:
            h = block(h, embedding, context)
        scale, shift = self.modulation(embedding)[:, None].chunk(2, dim=2)
        h = self.unpatchify(_modulate(self.norm_out(h), scale, shift))
        return unfold(h.transpose(1, 2).unflatten(2, grid), self.patch)


class _Block(nn.Module):
    """Gated self-attention, optional cross-attention, gated perceptron (adaLN-Zero)."""

    def __init__(self, width: int, heads: int, mlp_ratio: float, dropout: float, token_width: int | None) -> None:
        super().__init__()
        hidden = int(mlp_ratio * width)
        self.modulation = zeroed(nn.Linear(width, 6 * width))
        self.attention_norm = nn.LayerNorm(width, elementwise_affine=False)
        self.attention = SelfAttention(width, heads)
        self.cross = None
        if token_width is not None:
            self.cross_norm = nn.LayerNorm(width)
            self.cross = CrossAttention(width, heads, token_width)
            zeroed(self.cross.out)
        self.mlp_norm = nn.LayerNorm(width, elementwise_affine=False)
        self.mlp = nn.Sequential(nn.Linear(width, hidden), nn.GELU(approximate="tanh"), nn.Linear(hidden, width))
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, embedding: Tensor, context: Context) -> Tensor:
        scale1, shift1, gate1, scale2, shift2, gate2 = self.modulation(embedding)[:, None].chunk(6, dim=2)
        x = x + gate1 * self.dropout(self.attention(_modulate(self.attention_norm(x), scale1, shift1)))
        if self.cross is not None:
            x = x + self.cross(self.cross_norm(x), context)
        out: Tensor = x + gate2 * self.dropout(self.mlp(_modulate(self.mlp_norm(x), scale2, shift2)))
        return out


def _modulate(x: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    return x * (1 + scale) + shift
