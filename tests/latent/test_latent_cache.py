"""What a cache keeps of a posterior is all that a draw needs."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from ldm_lightning.latent.autoencoder import Autoencoder
from ldm_lightning.latent.bottleneck import (
    Bernoulli,
    BinarySpherical,
    Bottleneck,
    FiniteScalar,
    Gaussian,
    GumbelSoftmax,
    Identity,
    VectorQuantizer,
)
from ldm_lightning.latent.frozen import FrozenFirstStage
from ldm_lightning.latent.posterior import GaussianPosterior
from ldm_lightning.latent.scale import LatentScale
from ldm_lightning.rng import Streams


def test_a_posterior_survives_packing() -> None:
    torch.manual_seed(0)
    posterior = GaussianPosterior(torch.randn(5, 4, 2, 2), torch.randn(5, 4, 2, 2) * 5 - 5)
    streams = Streams(0, torch.arange(5), 3)
    assert posterior.pack().shape == (5, 8, 2, 2)
    again = GaussianPosterior.unpack(posterior.pack())
    torch.testing.assert_close(again.sample(streams), posterior.sample(streams), rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(again.log_var, posterior.log_var, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(again.mode(), posterior.mode(), rtol=0, atol=0)
    half = GaussianPosterior.unpack(posterior.pack().half())
    assert half.mean.dtype == torch.float32
    torch.testing.assert_close(half.sample(streams), posterior.sample(streams), rtol=2e-3, atol=2e-3)


def test_a_deviation_too_small_for_half_precision_is_none() -> None:
    packed = torch.cat([torch.full((1, 4, 2, 2), 0.5), torch.full((1, 4, 2, 2), 1e-9)], dim=1)
    drawn = GaussianPosterior.unpack(packed.half()).sample(Streams(0, torch.arange(1)))
    assert drawn.eq(0.5).all()


def test_the_holder_draws_from_packed_posteriors_as_from_pictures() -> None:
    torch.manual_seed(0)

    def convolution(in_channels: int, out_channels: int) -> nn.Module:
        return nn.Conv2d(in_channels, out_channels, 1)

    frozen = FrozenFirstStage(
        Autoencoder(convolution, convolution, Gaussian(4)), LatentScale(torch.ones(4), torch.full((4,), 2))
    )
    x, streams = torch.rand(6, 3, 5, 5), Streams(1, torch.arange(6), 2)
    packed, cached = frozen.posterior(x).pack(), frozen.for_cache()
    for drawn in (streams, None):
        torch.testing.assert_close(cached.encode(packed, drawn), frozen.encode(x, drawn), rtol=1e-6, atol=1e-6)
    assert not torch.allclose(cached.encode(packed, streams), cached.encode(packed))
    z = cached.encode(packed)
    assert torch.equal(cached.decode(z), frozen.decode(z))
    assert cached.latent_shape((3, 5, 5)) == frozen.latent_shape((3, 5, 5)) == (4, 5, 5)


FAMILIES = [
    Gaussian(4),
    Bernoulli(6),
    BinarySpherical(6),
    FiniteScalar([8, 5, 5]),
    GumbelSoftmax(4, codes=16),
    VectorQuantizer(4, codes=16),
    Identity(4),
]


@pytest.mark.parametrize("bottleneck", FAMILIES, ids=lambda family: type(family).__name__)
def test_every_family_draws_from_what_was_packed(bottleneck: Bottleneck) -> None:
    """And to the bit where latents are codes, in half precision too."""
    torch.manual_seed(0)
    posterior = bottleneck(torch.randn(5, bottleneck.encoder_channels, 3, 3))
    streams = Streams(0, torch.arange(5), 3)
    drawn = bottleneck.unpack(posterior.pack()).sample(streams)
    torch.testing.assert_close(drawn, posterior.sample(streams), rtol=1e-6, atol=1e-6)
    half = bottleneck.unpack(posterior.pack().half()).sample(streams)
    assert half.dtype == torch.float32
    if isinstance(bottleneck, BinarySpherical | FiniteScalar | VectorQuantizer):
        assert torch.equal(half, posterior.mode())
