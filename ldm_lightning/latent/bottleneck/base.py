"""What lies between encoder and decoder."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from ldm_lightning.errors import UserError
from ldm_lightning.latent.posterior import Posterior
from ldm_lightning.latent.scale import Scale
from ldm_lightning.precision import KeepsPrecision
from ldm_lightning.rng import Streams

__all__ = ["Bottleneck"]


class Bottleneck(KeepsPrecision):
    """Encoder output -> posterior; a module, because some families have weights or a state.

    A family with a state learns it in two steps: :meth:`observe` looks at every training batch, :meth:`advance` applies
    what was seen once for each optimizer step, however many batches and processes that took.

    Args:
        latent_channels: channels of a latent.
        encoder_channels: channels of the encoder's output.
        groups: codes at one place; 0 where latents are continuous.
        codes: choices of each.

    Raises:
        UserError: there are no channels.
    """

    def __init__(self, latent_channels: int, encoder_channels: int, groups: int = 0, codes: int = 0) -> None:
        super().__init__()
        if latent_channels < 1:
            raise UserError(f"bottleneck: latent_channels={latent_channels}: at least 1 is needed")
        self.latent_channels = latent_channels
        self.encoder_channels = encoder_channels
        self.groups = groups
        self.codes = codes

    def forward(self, features: Tensor) -> Posterior:
        """Posterior of encoder output (B, encoder_channels, *space) in float32."""
        raise NotImplementedError

    def unpack(self, packed: Tensor) -> Posterior:
        """The posterior that ``Posterior.pack`` made ``packed`` of, whatever its precision now: enough to draw from."""
        raise NotImplementedError

    def scale(self, statistics: Mapping[str, Any]) -> Scale:
        """How the diffusion model sees these latents, from what ``LatentStatistics.compute`` has measured."""
        raise NotImplementedError

    def observe(self, posterior: Posterior, streams: Streams, step: int) -> None:
        """Look at the posterior of a training batch in optimizer step ``step``, counted from 0."""

    def advance(self, step: int) -> None:
        """Optimizer step ``step`` is about to be made; all ranks must call this."""
