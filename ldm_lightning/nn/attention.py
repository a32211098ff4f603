"""Multi-head attention over sequences, and its use on items with axes.

Queries and keys are normalized per head (Dehghani et al. 2023, "Scaling vision transformers to 22 billion
parameters", Sec. 2), which bounds the logits: without it they grow during training until bfloat16 cannot resolve
them. The norm is a LayerNorm without bias; RMSNorm serves equally but has no fused kernel on CPUs.
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from ldm_lightning.errors import UserError
from ldm_lightning.nn.context import EMPTY, Context
from ldm_lightning.nn.layers import zeroed

__all__ = ["CrossAttention", "SelfAttention", "SpatialAttention"]


def _head_width(width: int, heads: int) -> int:
    if heads < 1 or width % heads:
        valid = [count for count in range(1, width + 1) if width % count == 0]
        nearest = min(valid, key=lambda count: abs(count - heads))
        raise UserError(f"{heads} attention heads do not divide the width {width}; use heads={nearest}")
    return width // heads


class SelfAttention(nn.Module):
    """(B, L, width) -> (B, L, width): every token reads every token."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query_norm = nn.LayerNorm(_head_width(width, heads), bias=False)
        self.key_norm = nn.LayerNorm(_head_width(width, heads), bias=False)
        self.project = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """Attend among ``x`` (B, L, width); ``mask`` (B, L) bool is True for tokens that may be read."""
        query, key, value = self.project(x).unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        out: Tensor = self.out(_attend(self.query_norm(query), self.key_norm(key), value, mask))
        return out


class CrossAttention(nn.Module):
    """(B, L, width) -> (B, L, width): every position reads the context's tokens."""

    def __init__(self, width: int, heads: int, token_width: int) -> None:
        super().__init__()
        self.heads = heads
        self.query_norm = nn.LayerNorm(_head_width(width, heads), bias=False)
        self.key_norm = nn.LayerNorm(_head_width(width, heads), bias=False)
        self.query = nn.Linear(width, width)
        self.key_value = nn.Linear(token_width, 2 * width)
        self.out = nn.Linear(width, width)

    def forward(self, x: Tensor, context: Context) -> Tensor:
        """Read ``context.tokens`` (B, S, token_width) where ``context.mask`` allows, from ``x`` (B, L, width).

        Raises:
            UserError: the context holds no tokens.
        """
        if context.tokens is None:
            raise UserError(
                "the backbone was built with token_width but the context holds no tokens; "
                "give the backbone the conditioner's token_width"
            )
        query = self.query(x).unflatten(2, (self.heads, -1)).transpose(1, 2)
        key, value = self.key_value(context.tokens).unflatten(2, (2, self.heads, -1)).permute(2, 0, 3, 1, 4)
        out: Tensor = self.out(_attend(self.query_norm(query), self.key_norm(key), value, context.mask))
        return out


def _attend(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
    """(B, heads, L, d), two of (B, heads, S, d), (B, S) bool -> (B, L, heads * d)."""
    allowed = None if mask is None else mask[:, None, None, :]
    return F.scaled_dot_product_attention(query, key, value, allowed).transpose(1, 2).flatten(2)


class SpatialAttention(nn.Module):
    """Residual attention over all positions of an item: among themselves, then to the context's tokens if any."""

    def __init__(self, channels: int, heads: int, token_width: int | None = None) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(channels)
        self.attention = SelfAttention(channels, heads)
        zeroed(self.attention.out)
        self.cross = None
        if token_width is not None:
            self.cross_norm = nn.LayerNorm(channels)
            self.cross = CrossAttention(channels, heads, token_width)
            zeroed(self.cross.out)

    def forward(self, x: Tensor, context: Context = EMPTY) -> Tensor:
        """(B, channels, *axes) -> (B, channels, *axes)."""
        h = x.flatten(2).transpose(1, 2)
        h = h + self.attention(self.norm(h))
        if self.cross is not None:
            h = h + self.cross(self.cross_norm(h), context)
        out: Tensor = h.transpose(1, 2).reshape(x.shape)
        return out
