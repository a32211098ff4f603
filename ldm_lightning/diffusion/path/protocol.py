"""What every path answers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar, Protocol

from torch import Tensor

from ldm_lightning.diffusion.schedule import Schedule
from ldm_lightning.rng import Streams

__all__ = ["Path", "expand"]


class Path(Protocol):
    """A corruption of clean data; t = 0 is clean, t = 1 is noise. Latents are (B, C, *space), times (B,) in [0, 1].

    Attributes:
        suits: by configuration group, a choice that works on this path.
    """

    suits: ClassVar[Mapping[str, str]]

    @property
    def schedule(self) -> Schedule:
        """Signal and noise over time; a path without them has one that raises UserError when it is asked."""
        ...

    def coefficients(self, t: Tensor, like: Tensor) -> tuple[Tensor, ...]:
        """The numbers that describe the corruption at t, viewed so that they broadcast over ``like``."""
        ...

    def noise(self, streams: Streams, shape: Sequence[int]) -> Tensor:
        """(B, *shape) numbers for :meth:`corrupt`, every sample's from its own stream."""
        ...

    def corrupt(self, z0: Tensor, t: Tensor, noise: Tensor) -> Tensor:
        """Draw z_t from q(z_t | z_0)."""
        ...

    def prior(self, streams: Streams, shape: Sequence[int]) -> Tensor:
        """Draw z_1 (B, *shape), where sampling starts."""
        ...

    def loss(self, output: Tensor, target: Tensor) -> Tensor:
        """(B,) loss of the network's output, averaged over a sample's dimensions."""
        ...


def expand(t: Tensor, like: Tensor) -> Tensor:
    """View (B,) as (B, 1, ..., 1) with as many dimensions as ``like``."""
    return t.view(-1, *[1] * (like.ndim - 1))
