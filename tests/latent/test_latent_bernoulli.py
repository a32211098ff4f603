"""Binary latents: the Bernoulli posterior against torch.distributions, its gradients against finite differences."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch.distributions import Bernoulli, kl_divergence

from ldm_lightning.latent import bottleneck
from ldm_lightning.latent.autoencoder import Autoencoder
from ldm_lightning.latent.frozen import FrozenFirstStage
from ldm_lightning.latent.posterior import BernoulliPosterior
from ldm_lightning.latent.scale import BitScale, LatentStatistics
from ldm_lightning.nn.conv_codec import ConvDecoder, ConvEncoder
from ldm_lightning.rng import Streams

N = 20_000


def random_posterior(*shape: int) -> BernoulliPosterior:
    return BernoulliPosterior(3 * torch.randn(*shape, generator=torch.Generator().manual_seed(0)))


@pytest.mark.parametrize("shape", [(5, 3, 4, 4), (2, 3, 8), (4, 6)])
def test_kl_is_the_mean_of_the_elementwise_divergence_from_fair_coins(shape):
    posterior = random_posterior(*shape)
    elements = kl_divergence(Bernoulli(logits=posterior.logits), Bernoulli(0.5))
    torch.testing.assert_close(posterior.kl(), elements.flatten(1).mean(1))


def test_kl_lies_between_those_of_fair_coins_and_of_certain_bits():
    logits = torch.tensor([[0.0], [1e4], [-1e4]], requires_grad=True)
    kl = BernoulliPosterior(logits).kl()
    torch.testing.assert_close(kl, torch.tensor([0.0, math.log(2), math.log(2)]))
    (slope,) = torch.autograd.grad(kl.sum(), logits)
    assert slope.isfinite().all()


def test_draws_are_bits_with_the_probabilities_of_the_logits():
    probability = torch.tensor([0.0, 0.1, 0.5, 0.93, 1.0])
    posterior = BernoulliPosterior(probability.logit().expand(N, 5).clone().requires_grad_())
    draws = posterior.sample(Streams(0, torch.arange(N))).detach()
    assert set(draws.unique().tolist()) == {0.0, 1.0}  # to the bit, also with gradients
    assert ((draws.mean(0) - probability).abs() <= 4 * (probability * (1 - probability) / N).sqrt()).all()
    first, second = posterior.moments()
    assert first.dtype == torch.float64
    torch.testing.assert_close(first[0], probability.double(), atol=1e-6, rtol=0)
    assert torch.equal(first, second)


def test_a_draw_does_not_depend_on_its_batch_and_the_mode_is_the_likelier_bit():
    posterior, index = random_posterior(50, 2, 3), torch.arange(50)
    part = BernoulliPosterior(posterior.logits[33:]).sample(Streams(0, index[33:], epoch=4))
    assert torch.equal(posterior.sample(Streams(0, index, epoch=4))[33:], part)
    assert torch.equal(posterior.mode(), (posterior.logits.sigmoid() > 0.5).float())


def test_straight_through_is_the_gradient_of_the_expected_loss_where_the_loss_is_linear():
    """By every single draw, against finite differences of E[w z] = w sigmoid(logits)."""
    logits = torch.randn(3, 4, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(3, 4, dtype=torch.float64)

    def expected(values: Tensor) -> Tensor:
        return (weight * Bernoulli(logits=values).mean).sum()

    differences = torch.zeros_like(logits)
    for number in range(logits.numel()):
        nudge = torch.zeros(logits.numel(), dtype=torch.float64)
        nudge[number] = 1e-5
        nudge = nudge.view_as(logits)
        differences.view(-1)[number] = (expected(logits + nudge) - expected(logits - nudge)).item() / 2e-5
    for seed in range(5):
        loss = (weight * BernoulliPosterior(logits).sample(Streams(seed, torch.arange(3)))).sum()
        (slope,) = torch.autograd.grad(loss, logits)
        torch.testing.assert_close(slope, differences, atol=1e-9, rtol=1e-7)


def test_bits_are_standardized_to_signs_and_back_and_analog_bits_rounded():
    bits = torch.tensor([0.0, 1.0, 1.0])
    scale = bottleneck.Bernoulli(1).scale({"mean": [0.9], "std": [0.3]})
    assert isinstance(scale, BitScale)
    assert scale.standardize(bits).tolist() == [-1, 1, 1]
    assert torch.equal(scale.unstandardize(scale.standardize(bits)), bits)
    assert scale.unstandardize(torch.tensor([-0.7, 0.2, 1.4])).tolist() == [0, 1, 1]


def test_statistics_tell_how_often_a_bit_is_one():
    posterior = random_posterior(6, 2, 3, 3)
    statistics = LatentStatistics(2)
    statistics.update(posterior)
    measured = statistics.compute()
    assert measured["n"] == 6
    probability = posterior.logits.double().sigmoid().mean((0, 2, 3))
    assert measured["mean"] == pytest.approx(probability.tolist())
    assert measured["std"] == pytest.approx((probability * (1 - probability)).sqrt().tolist())


def test_an_autoencoder_of_bits_gives_the_second_stage_signs():
    def codec(kind: type) -> object:
        return lambda **sizes: kind(channels=[4, 4], blocks=1, **sizes)

    autoencoder = Autoencoder(codec(ConvEncoder), codec(ConvDecoder), bottleneck.Bernoulli(3), in_channels=1)
    first_stage = FrozenFirstStage(autoencoder, autoencoder.bottleneck.scale({}))
    x = torch.rand(4, 1, 8, 8) * 2 - 1
    for z in (first_stage.encode(x), first_stage.encode(x, Streams(0, torch.arange(4)))):
        assert z.shape[1:] == first_stage.latent_shape((1, 8, 8)) == (3, 4, 4)
        assert set(z.unique().tolist()) <= {-1.0, 1.0}
    mode = autoencoder.encode(x).mode()
    torch.testing.assert_close(first_stage.decode(first_stage.encode(x)), autoencoder.decode(mode))
