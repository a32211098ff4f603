"""What conditioners give to a backbone.

A condition (a class, a caption, later an image) reaches a network by one of two roads, or by both:

- a *vector* per sample, added to the time embedding, which then scales and shifts every block (Dhariwal & Nichol
  2021, "Diffusion models beat GANs on image synthesis", AdaGN; Peebles & Xie 2023, adaLN);
- a sequence of *tokens* per sample, read by cross-attention (Rombach et al. 2022, "High-resolution image synthesis
  with latent diffusion models", Sec. 3.3).

Backbones know only this container, so every conditioner works with every backbone.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

__all__ = ["EMPTY", "Context"]


@dataclass(frozen=True)
class Context:
    """The condition of a batch, in the form in which a backbone reads it.

    Attributes:
        vector: (B, vector_width), added to the time embedding.
        tokens: (B, L, token_width), attended to by cross-attention.
        mask: (B, L) bool, True where a token may be attended to (at least one a sample); None attends to all.
    """

    vector: Tensor | None = None
    tokens: Tensor | None = None
    mask: Tensor | None = None


EMPTY = Context()
"""The context of an unconditional model."""
