"""The transformer backbone: DiT with adaLN-Zero.

Latents are cut into patches, each patch is a token, and blocks of attention and perceptron run over them. Time and
vector conditions enter only as scale, shift and gate of the norms; gates start at zero, so every block starts as the
identity (Peebles & Xie 2023, "Scalable diffusion models with transformers", Sec. 3.2). Tokens are read by
cross-attention between self-attention and perceptron (Chen et al. 2023, "PixArt-alpha", Sec. 2.3).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ldm_lightning.errors import UserError
from ldm_lightning.nn.attention import CrossAttention, SelfAttention
from ldm_lightning.nn.context import Context
from ldm_lightning.nn.layers import TimeEmbedding, zeroed

__all__ = ["DiT", "position_embedding"]


def position_embedding(height: int, width: int, channels: int, device: torch.device | None = None) -> Tensor:
    """2-D sine-cosine embedding of a grid (Peebles & Xie 2023; Vaswani et al. 2017).

    A quarter of the channels each holds the sines and the cosines of the row, then of the column. It is made anew in
    every forward pass: the sinusoids are one-dimensional and cost less than the look-up in a cache would save.

    Args:
        height: rows of the grid.
        width: columns of the grid.
        channels: divisible by 4.
        device: where the embedding is made.

    Returns:
        (height * width, channels) float32.
    """
    quarter = channels // 4
    frequencies = torch.exp(-math.log(10_000) / quarter * torch.arange(quarter, device=device))

    def axis(length: int) -> Tensor:
        angles = torch.arange(length, device=device)[:, None] * frequencies
        return torch.cat([angles.sin(), angles.cos()], dim=1)

    rows = axis(height)[:, None].expand(-1, width, -1)
    columns = axis(width)[None].expand(height, -1, -1)
    return torch.cat([rows, columns], dim=2).flatten(0, 1)


class DiT(nn.Module):
    """Diffusion transformer for inputs whose sides are multiples of ``patch``.

    Args:
        in_channels: channels of the latents.
        patch: side of a patch in latent pixels.
        width: channels of a token, divisible by 4 and by ``heads``.
        depth: number of blocks.
        heads: attention heads.
        mlp_ratio: width of the perceptron over ``width``.
        dropout: after attention and perceptron.
        vector_width: width of the context's vector; None for none.
        token_width: width of the context's tokens; None for none.
        out_channels: channels of the output; None for ``in_channels``.

    The output is exactly zero before training.

    Raises:
        UserError: ``width`` is not divisible by 4 or by ``heads``.
    """

    def __init__(
        self,
        in_channels: int,
        *,
        patch: int = 1,
        width: int = 256,
        depth: int = 6,
        heads: int = 4,
        mlp_ratio: float = 4,
        dropout: float = 0.0,
        vector_width: int | None = None,
        token_width: int | None = None,
        out_channels: int | None = None,
    ) -> None:
        super().__init__()
        if width % 4:
            raise UserError(f"DiT width {width} is not divisible by 4; use width={width + 4 - width % 4}")
        self.patch = patch
        self.vector_width, self.token_width = vector_width, token_width
        self.embed = TimeEmbedding(width, vector_width)
        self.patchify = nn.Linear(in_channels * patch**2, width)
        self.blocks = nn.ModuleList(_Block(width, heads, mlp_ratio, dropout, token_width) for _ in range(depth))
        self.norm_out = nn.LayerNorm(width, elementwise_affine=False)
        self.modulation = zeroed(nn.Linear(width, 2 * width))
        self.unpatchify = zeroed(nn.Linear(width, (out_channels or in_channels) * patch**2))

    def forward(self, z: Tensor, t: Tensor, context: Context) -> Tensor:
        """(B, in_channels, H, W) at times (B,) in [0, 1] -> (B, out_channels, H, W).

        Raises:
            UserError: ``patch`` does not divide H and W.
        """
        height, width = z.shape[2:]
        if height % self.patch or width % self.patch:
            raise UserError(
                f"latents of {height}x{width} cannot be cut into patches of {self.patch}x{self.patch}; "
                f"use patch={math.gcd(height, width, self.patch)} or another image size"
            )
        embedding = self.embed(t, context)
        # Patches by unshuffle and a linear map: the same function as a strided convolution, and faster on a CPU.
        patches = F.pixel_unshuffle(z, self.patch)
        rows, columns = patches.shape[2:]
        h = self.patchify(patches.flatten(2).transpose(1, 2))
        h = h + position_embedding(rows, columns, h.shape[2], h.device).to(h.dtype)
        for block in self.blocks:
            h = block(h, embedding, context)
        scale, shift = self.modulation(embedding)[:, None].chunk(2, dim=2)
        h = self.unpatchify(_modulate(self.norm_out(h), scale, shift))
        return F.pixel_shuffle(h.transpose(1, 2).unflatten(2, (rows, columns)), self.patch)


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
