"""What every posterior answers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Protocol, Self

from torch import Tensor

from ldm_lightning.latent.scale import Scale
from ldm_lightning.rng import Streams

__all__ = ["Posterior"]


class Posterior(Protocol):
    """A distribution q(z | x) of raw latents z (B, C, *space).

    Attributes:
        parameters_per_channel: how many encoder outputs describe one latent channel.
    """

    parameters_per_channel: ClassVar[int]

    @classmethod
    def from_parameters(cls, parameters: Tensor) -> Self:
        """Read the encoder's output (B, parameters_per_channel C, *space)."""
        ...

    def pack(self) -> Tensor:
        """One tensor (B, P, *space) with all that :meth:`sample` needs, which half precision suits."""
        ...

    @classmethod
    def unpack(cls, packed: Tensor) -> Self:
        """The posterior that :meth:`pack` made ``packed`` of, whatever its precision now."""
        ...

    @staticmethod
    def scale(statistics: Mapping[str, Any]) -> Scale:
        """How the diffusion model sees these latents, from what ``LatentStatistics.compute`` has measured."""
        ...

    def sample(self, streams: Streams) -> Tensor:
        """A draw that lets gradients through; each sample's noise comes from its own stream."""
        ...

    def mode(self) -> Tensor:
        """The most probable latents."""
        ...

    def kl(self) -> Tensor:
        """(B,) divergence from the prior in nats **per latent element**."""
        ...

    def moments(self) -> tuple[Tensor, Tensor]:
        """First and second moment of a draw, elementwise, in float64."""
        ...
