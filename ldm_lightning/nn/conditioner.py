"""Conditioners: from the named conditions of a batch to the context a backbone reads.

Each conditioner also knows its *null*, a learned stand-in for "no condition". Training replaces the condition of some
samples by it, so that one network learns both the conditional and the unconditional model that classifier-free
guidance compares (Ho & Salimans 2022, Algorithm 1). Which samples is the caller's choice: ``drop`` is an argument,
and no random number is drawn here.

Nulls take part in every forward pass, dropped samples or not, so distributed training never meets an unused
parameter.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from ldm_lightning.errors import UserError
from ldm_lightning.nn.attention import SelfAttention
from ldm_lightning.nn.context import EMPTY, Context

__all__ = ["CaptionTokens", "ClassTokens", "ClassVector", "Conditioner", "Conditioners", "NoCondition"]


class Conditioner(nn.Module):
    """The interface of all conditioners.

    Attributes:
        vector_width: width of ``Context.vector``; None if there is none.
        token_width: width of ``Context.tokens``; None if there are none.
        reads: names of the conditions that a batch must hold.
    """

    reads: tuple[str, ...] = ()
    vector_width: int | None = None
    token_width: int | None = None

    def forward(self, condition: Mapping[str, Tensor], drop: Tensor | None = None) -> Context:
        """Read ``condition``, tensors by name with first dimension B; ``drop`` (B,) bool selects the null instead.

        Raises:
            UserError: the batch lacks a condition, or holds one out of range.
        """
        raise NotImplementedError


class NoCondition(Conditioner):
    """Nothing: the unconditional model."""

    def forward(self, condition: Mapping[str, Tensor], drop: Tensor | None = None) -> Context:
        """Return the empty context, whatever the batch holds."""
        return EMPTY


class ClassVector(Conditioner):
    """Class label ``condition["class"]``, (B,) int64 in [0, num_classes), as a vector added to the time embedding."""

    reads = ("class",)

    def __init__(self, num_classes: int, width: int) -> None:
        super().__init__()
        self.vector_width = width
        self.embedding = _ClassEmbedding(num_classes, width)

    def forward(self, condition: Mapping[str, Tensor], drop: Tensor | None = None) -> Context:
        """Return a context with the vector (B, width)."""
        return Context(vector=self.embedding(_entry(condition, "class"), drop))


class ClassTokens(Conditioner):
    """Class label ``condition["class"]``, (B,) int64 in [0, num_classes), as one token for cross-attention."""

    reads = ("class",)

    def __init__(self, num_classes: int, width: int) -> None:
        super().__init__()
        self.token_width = width
        self.embedding = _ClassEmbedding(num_classes, width)

    def forward(self, condition: Mapping[str, Tensor], drop: Tensor | None = None) -> Context:
        """Return a context with the tokens (B, 1, width)."""
        return Context(tokens=self.embedding(_entry(condition, "class"), drop)[:, None])


class CaptionTokens(Conditioner):
    """Caption ``condition["caption"]``, read byte by byte by a small transformer trained with the backbone.

    A caption is (B, L) int64: UTF-8 bytes plus 1, padded with 0. Bytes need no vocabulary file and know every
    language. A begin token stands before each caption, so that an empty one still has something to attend to; the
    null is another first token, with all the bytes hidden.

    Args:
        width: channels of a token.
        length: most bytes of a caption.
        depth: encoder blocks.
        heads: attention heads.
    """

    reads = ("caption",)
    _BEGIN, _NULL, _SYMBOLS = 257, 258, 259

    def __init__(self, width: int, length: int = 64, depth: int = 2, heads: int = 4) -> None:
        super().__init__()
        self.token_width = width
        self.length = length
        self.symbols = nn.Embedding(self._SYMBOLS, width)
        self.positions = nn.Embedding(1 + length, width)
        self.blocks = nn.ModuleList(_EncoderBlock(width, heads) for _ in range(depth))
        self.norm = nn.LayerNorm(width)

    def forward(self, condition: Mapping[str, Tensor], drop: Tensor | None = None) -> Context:
        """Return a context with the tokens (B, 1 + L, width) and their mask.

        Raises:
            UserError: L exceeds ``length``.
        """
        caption = _entry(condition, "caption")
        if caption.shape[1] > self.length:
            raise UserError(
                f"captions of {caption.shape[1]} bytes do not fit the conditioner's length={self.length}; "
                f"set length={caption.shape[1]} or shorten the captions"
            )
        drop = _nobody(caption) if drop is None else drop
        first = torch.where(drop, self._NULL, self._BEGIN)[:, None]
        symbols = torch.cat([first, caption.masked_fill(drop[:, None], 0)], dim=1)
        mask = symbols != 0
        h = self.symbols(symbols) + self.positions.weight[: symbols.shape[1]]
        for block in self.blocks:
            h = block(h, mask)
        return Context(tokens=self.norm(h), mask=mask)


class Conditioners(Conditioner):
    """Several conditioners at once: their vectors are summed, their tokens concatenated.

    Raises:
        UserError: two vectors, or two sequences of tokens, differ in width.
    """

    def __init__(self, conditioners: Sequence[Conditioner]) -> None:
        super().__init__()
        self.parts = nn.ModuleList(conditioners)
        self.vector_width = _common("vector_width", [part.vector_width for part in conditioners])
        self.token_width = _common("token_width", [part.token_width for part in conditioners])
        self.reads = tuple(dict.fromkeys(name for part in conditioners for name in part.reads))

    def forward(self, condition: Mapping[str, Tensor], drop: Tensor | None = None) -> Context:
        """Return the joint context; ``drop`` drops all conditions of a sample together."""
        contexts: list[Context] = [part(condition, drop) for part in self.parts]
        vectors = [context.vector for context in contexts if context.vector is not None]
        tokens = [context.tokens for context in contexts if context.tokens is not None]
        masks = [_mask(context.tokens, context.mask) for context in contexts if context.tokens is not None]
        masked = any(context.mask is not None for context in contexts)
        return Context(
            vector=torch.stack(vectors).sum(dim=0) if vectors else None,
            tokens=torch.cat(tokens, dim=1) if tokens else None,
            mask=torch.cat(masks, dim=1) if masked else None,
        )


class _ClassEmbedding(nn.Module):
    """(B,) labels -> (B, width), the null where dropped.

    The null is kept out of the table: as its last row it would silently answer to the label ``num_classes``.
    """

    def __init__(self, num_classes: int, width: int) -> None:
        super().__init__()
        self.table = nn.Embedding(num_classes, width)
        self.null = nn.Parameter(torch.randn(width))

    def forward(self, labels: Tensor, drop: Tensor | None) -> Tensor:
        try:
            embedded = self.table(labels)
        except IndexError as error:  # the table's own check on a CPU; a GPU asserts, since asking would stall it
            raise UserError(
                f"the batch holds classes {labels.min()} to {labels.max()}, but the conditioner has "
                f"num_classes={self.table.num_embeddings}; set num_classes to the data's"
            ) from error
        drop = _nobody(labels) if drop is None else drop
        return torch.where(drop[:, None], self.null, embedded)


class _EncoderBlock(nn.Module):
    """Pre-norm transformer block of the caption encoder."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.attention_norm, self.attention = nn.LayerNorm(width), SelfAttention(width, heads)
        self.mlp = nn.Sequential(
            nn.LayerNorm(width), nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width)
        )

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        x = x + self.attention(self.attention_norm(x), mask)
        out: Tensor = x + self.mlp(x)
        return out


def _nobody(values: Tensor) -> Tensor:
    """(B,) bool: no sample is dropped."""
    return values.new_zeros(len(values), dtype=torch.bool)


def _mask(tokens: Tensor, mask: Tensor | None) -> Tensor:
    """(B, L) bool: ``mask``, or all True."""
    return tokens.new_ones(tokens.shape[:2], dtype=torch.bool) if mask is None else mask


def _entry(condition: Mapping[str, Tensor], name: str) -> Tensor:
    if name not in condition:
        held = ", ".join(f"'{other}'" for other in sorted(condition)) or "none"
        raise UserError(
            f"the conditioner needs the condition '{name}' but the batch holds {held}; "
            "choose data that has it, or a conditioner for what the data has"
        )
    return condition[name]


def _common(name: str, widths: Sequence[int | None]) -> int | None:
    distinct = sorted({width for width in widths if width is not None})
    if len(distinct) > 1:
        raise UserError(f"the combined conditioners have {name} {distinct}; give them one width")
    return distinct[0] if distinct else None
