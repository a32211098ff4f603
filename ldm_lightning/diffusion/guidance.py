r"""Guidance: steering samples towards their condition.

A guidance turns a denoiser and a condition into the function (z, t) -> clean latents that samplers call. One
convention holds everywhere: **scale 1 is the plain conditional model, 0 the unconditional one**, larger values
extrapolate,

.. math:: \hat z_0 = \hat z_0^{null} + s \, (\hat z_0^{cond} - \hat z_0^{null}).

The weights add to one, so guiding the clean data, the noise or a velocity is the same.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from ldm_lightning.diffusion.denoiser import Denoiser

__all__ = ["ClassifierFree", "Denoise", "Guidance"]

Denoise = Callable[[Tensor, Tensor], Tensor]


class Guidance(Protocol):
    """Binds a condition to a denoiser."""

    def __call__(self, denoiser: Denoiser, condition: Mapping[str, Tensor]) -> Denoise:
        """Return the function (z (B, C, *space), t (B,)) -> clean latents."""
        ...


@dataclass(frozen=True)
class ClassifierFree:
    """Classifier-free guidance (Ho & Salimans 2022).

    Attributes:
        scale: 1 conditional, 0 unconditional; both cost one network evaluation of B samples. Any other value costs one
            evaluation of 2 B samples.
    """

    scale: float = 1.0

    def __call__(self, denoiser: Denoiser, condition: Mapping[str, Tensor]) -> Denoise:
        """Return the function (z, t) -> guided clean latents."""

        def single(z: Tensor, t: Tensor) -> Tensor:
            drop = torch.full_like(t, self.scale == 0, dtype=torch.bool)
            return denoiser.clean(z, t, condition, drop)

        def guided(z: Tensor, t: Tensor) -> Tensor:
            both = {name: torch.cat([value, value]) for name, value in condition.items()}
            drop = torch.cat([torch.zeros_like(t), torch.ones_like(t)]).bool()
            clean = denoiser.clean(torch.cat([z, z]), torch.cat([t, t]), both, drop)
            conditional, unconditional = clean.chunk(2)
            return unconditional + self.scale * (conditional - unconditional)

        return single if self.scale in (0, 1) else guided
