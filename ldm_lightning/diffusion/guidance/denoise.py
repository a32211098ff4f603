"""The function that samplers call."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

__all__ = ["Denoise"]

Denoise = Callable[[Tensor, Tensor], Tensor]
"""(z (B, C, *space), t (B,), the same time for all rows) -> natural parameter of the clean latents, shaped like z.

On a Gaussian path that is their mean, on a Bernoulli path the logit of the probability of a one.
"""
