"""The autoencoder: encoder, bottleneck and decoder of the first stage.

A picture ends at -1 and 1, and much of it lies there: paper, outlines, the sky. The decoder's output is clamped by
:meth:`Autoencoder.decode`, so that losses, discriminators and measures all judge the picture that would be saved, and
a decoder that overshoots a white wall is as right as one that meets it. Where the clamp holds, only those gradients
pass that lead back inside, so that no pixel is lost out there.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import Function

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
    def encoder_layer(self) -> nn.Parameter:
        """The last weight of the encoder, where the pulls of two losses at the latents are compared."""
        return [parameter for parameter in self.encoder.parameters() if parameter.ndim > 1][-1]

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
        """Pictures (B, C, H, W), clamped to [-1, 1], of raw latents."""
        x: Tensor = _Bounded.apply(self.decoder(z).float())
        return x


class _Bounded(Function):
    """Clamps to [-1, 1]; gradients by which a descent would lead further outside are zero."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x.clamp(-1, 1)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        outward = ((x > 1) & (gradient < 0)) | ((x < -1) & (gradient > 0))
        return gradient.masked_fill(outward, 0)
