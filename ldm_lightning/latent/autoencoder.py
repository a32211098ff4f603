"""The autoencoder: encoder, posterior and decoder of the first stage."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn

from ldm_lightning.errors import UserError
from ldm_lightning.latent.posterior import GaussianPosterior, Posterior

__all__ = ["Autoencoder"]


class Autoencoder(nn.Module):
    """Pictures to a posterior over latents, latents to pictures.

    Args:
        encoder: factory, called with ``in_channels`` and ``out_channels``; its module has an int ``factor``, the
            down-sampling per side.
        decoder: factory, called with ``in_channels`` and ``out_channels``.
        latent_channels: channels of a latent.
        posterior: family of the posterior; tells how many encoder outputs one latent channel takes.
        in_channels: channels of a picture.
    """

    def __init__(
        self,
        encoder: Callable[..., nn.Module],
        decoder: Callable[..., nn.Module],
        latent_channels: int,
        posterior: type[Posterior] = GaussianPosterior,
        in_channels: int = 3,
    ) -> None:
        super().__init__()
        if latent_channels < 1:
            raise UserError(f"first_stage.latent_channels={latent_channels}: at least 1 is needed")
        self.encoder = encoder(in_channels=in_channels, out_channels=posterior.parameters_per_channel * latent_channels)
        self.decoder = decoder(in_channels=latent_channels, out_channels=in_channels)
        self.posterior = posterior
        self.latent_channels = latent_channels
        self.in_channels = in_channels

    @property
    def last_layer(self) -> nn.Parameter:
        """The last weight of the decoder, where the pulls of two losses at the pictures are compared."""
        return [parameter for parameter in self.decoder.parameters() if parameter.ndim > 1][-1]

    def encode(self, x: Tensor) -> Posterior:
        """Posterior over latents (B, latent_channels, H / factor, W / factor) of pictures (B, C, H, W) in [-1, 1]."""
        return self.posterior.from_parameters(self.encoder(x))

    def decode(self, z: Tensor) -> Tensor:
        """Pictures (B, C, H, W), about [-1, 1] but not clamped, of raw latents."""
        x: Tensor = self.decoder(z)
        return x.float()
