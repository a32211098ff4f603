"""The frozen holder: a trained first stage that no optimizer, EMA, DDP wrapper or checkpoint ever sees."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from ldm_lightning.latent.autoencoder import Autoencoder
from ldm_lightning.latent.posterior import Posterior
from ldm_lightning.latent.scale import Scale
from ldm_lightning.rng import Streams

__all__ = ["FrozenFirstStage"]


class FrozenFirstStage:
    """Pictures <-> standardized latents, by a first stage that is no longer trained.

    A plain object on purpose: as an ``nn.Module`` child it would be copied by EMA, wrapped by DDP and written into
    every checkpoint of the second stage.

    Args:
        autoencoder: trained weights inside; put into eval mode, its gradients switched off.
        scale: how the second stage sees its latents.
        posterior: the first half of :meth:`encode`; the autoencoder's own by default.
    """

    def __init__(
        self,
        autoencoder: Autoencoder,
        scale: Scale,
        posterior: Callable[[Tensor], Posterior] | None = None,
    ) -> None:
        self.autoencoder = autoencoder.eval().requires_grad_(False)
        self.scale = scale
        self.posterior = posterior or autoencoder.encode

    def for_cache(self) -> FrozenFirstStage:
        """This first stage for batches of a latent cache: its :meth:`encode` takes packed posteriors, not pictures."""
        return FrozenFirstStage(self.autoencoder, self.scale, self.autoencoder.bottleneck.unpack)

    def __deepcopy__(self, memo: dict[int, Any]) -> FrozenFirstStage:
        return self

    def to(self, device: torch.device | str) -> FrozenFirstStage:
        """Move the weights to ``device``; returns itself."""
        self.autoencoder.to(device)
        self.scale.to(device)
        return self

    @torch.no_grad()
    def encode(self, x: Tensor, streams: Streams | None = None) -> Tensor:
        """Standardized latents (B, C, h, w) of pictures (B, C, H, W) in [-1, 1].

        Args:
            x: the pictures.
            streams: noise of the posterior draw; without it the posterior's mode is taken.
        """
        with torch.autocast(x.device.type, enabled=False):  # latents do not depend on the second stage's precision
            posterior = self.posterior(x)
            return self.scale.standardize(posterior.mode() if streams is None else posterior.sample(streams))

    @torch.no_grad()
    def decode(self, z: Tensor) -> Tensor:
        """Pictures (B, C, H, W) in [-1, 1] of standardized latents, whatever the precision of these."""
        weight = next(self.autoencoder.parameters(), None)
        with torch.autocast(z.device.type, enabled=False):
            return self.autoencoder.decode(self.scale.unstandardize(z if weight is None else z.to(weight.dtype)))

    @torch.no_grad()
    def latent_shape(self, shape: Sequence[int]) -> tuple[int, ...]:
        """Shape (C, h, w) of the latent of one picture of ``shape`` (C, H, W)."""
        device = next((parameter.device for parameter in self.autoencoder.parameters()), None)
        return tuple(self.autoencoder.encode(torch.zeros(1, *shape, device=device)).mode().shape[1:])
