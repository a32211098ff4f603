"""The autoencoder: encoder, bottleneck and decoder of the first stage."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from ldm_lightning.latent.bottleneck import Bottleneck
from ldm_lightning.latent.posterior import Posterior

__all__ = ["Autoencoder"]


class Autoencoder(nn.Module):
    """Pictures to a posterior over latents, latents to pictures.

    Args:
        encoder: factory, called with ``in_channels`` and ``out_channels``; its module has an int ``factor``, the
            down-sampling per side.
        decoder: factory, called with ``in_channels`` and ``out_channels``.
        bottleneck: from the encoder's output to the posterior; says how many channels encoder and latents have.
        in_channels: channels of a picture.
    """

    def __init__(
        self,
        encoder: Callable[..., nn.Module],
        decoder: Callable[..., nn.Module],
        bottleneck: Bottleneck,
        in_channels: int = 3,
    ) -> None:
        super().__init__()
        self.encoder = encoder(in_channels=in_channels, out_channels=bottleneck.encoder_channels)
        self.bottleneck = bottleneck
        self.decoder = decoder(in_channels=bottleneck.latent_channels, out_channels=in_channels)
        self.in_channels = in_channels

    @property
    def last_layer(self) -> nn.Parameter:
        """The last weight of the decoder, where the pulls of two losses at the pictures are compared."""
        return [parameter for parameter in self.decoder.parameters() if parameter.ndim > 1][-1]

    @property
    def latent_channels(self) -> int:
        """Channels of a latent."""
        return self.bottleneck.latent_channels

    def encode(self, x: Tensor) -> Posterior:
        """Posterior over latents (B, latent_channels, H / factor, W / factor) of pictures (B, C, H, W) in [-1, 1]."""
        features = self.encoder(x)
        with torch.autocast(x.device.type, enabled=False):  # which code is nearest is no question for half precision
            posterior: Posterior = self.bottleneck(features.float())
        return posterior

    def decode(self, z: Tensor) -> Tensor:
        """Pictures (B, C, H, W), about [-1, 1] but not clamped, of raw latents."""
        x: Tensor = self.decoder(z)
        return x.float()
