"""The Gaussian posterior against torch.distributions and against its own draws."""

from __future__ import annotations

import math

import pytest
import torch
from scipy import stats
from torch.distributions import Normal, kl_divergence

from ldm_lightning.latent.bottleneck import Gaussian
from ldm_lightning.latent.posterior import GaussianPosterior
from ldm_lightning.rng import Streams

N = 20_000


def random_posterior(*shape: int) -> GaussianPosterior:
    generator = torch.Generator().manual_seed(0)
    return GaussianPosterior(torch.randn(*shape, generator=generator), torch.randn(*shape, generator=generator))


@pytest.mark.parametrize("shape", [(5, 3, 4, 4), (2, 3, 8), (4, 6)])
def test_kl_is_the_mean_of_the_elementwise_divergence_from_the_standard_normal(shape):
    posterior = random_posterior(*shape)
    elements = kl_divergence(Normal(posterior.mean, (posterior.log_var / 2).exp()), Normal(0.0, 1.0))
    torch.testing.assert_close(posterior.kl(), elements.flatten(1).mean(1))


def test_kl_of_the_prior_is_zero_and_otherwise_positive():
    zero = torch.zeros(2, 3, 4, 4)
    assert torch.equal(GaussianPosterior(zero, zero).kl(), torch.zeros(2))
    assert (random_posterior(50, 1, 1, 1).kl() > 0).all()


def test_kl_does_not_grow_with_resolution():
    small = random_posterior(2, 3, 4, 4)
    large = GaussianPosterior(small.mean.repeat(1, 1, 4, 2), small.log_var.repeat(1, 1, 4, 2))
    torch.testing.assert_close(large.kl(), small.kl())


def test_parameters_are_split_in_float32_and_the_log_variance_clamped():
    parameters = torch.tensor([1.0, 2.0, -100.0, 100.0], dtype=torch.bfloat16).view(1, 4, 1, 1)
    posterior = GaussianPosterior.from_parameters(parameters)
    assert posterior.mean.flatten().tolist() == [1, 2]
    assert posterior.log_var.flatten().tolist() == [-30, 20]
    assert posterior.mean.dtype == posterior.log_var.dtype == torch.float32
    assert parameters.shape[1] == Gaussian(2).encoder_channels


def test_sample_has_the_distribution_of_the_posterior():
    mean, log_var = torch.tensor([[1.5, -2.0]]), torch.tensor([[0.7, -3.0]])
    posterior = GaussianPosterior(mean.expand(N, 2), log_var.expand(N, 2))
    draws = posterior.sample(Streams(0, torch.arange(N)))
    for dimension, (loc, scale) in zip(draws.T, [(1.5, math.exp(0.35)), (-2.0, math.exp(-1.5))], strict=True):
        assert stats.kstest(dimension.numpy(), "norm", (loc, scale)).pvalue > 1e-3
    assert abs(torch.corrcoef(draws.T)[0, 1]) < 4 / math.sqrt(N)
    for drawn, exact in zip((draws, draws**2), posterior.moments(), strict=True):
        assert ((drawn.mean(0) - exact[0]).abs() < 4 * drawn.std(0) / math.sqrt(N)).all()


def test_sample_belongs_to_the_picture_not_to_the_batch():
    posterior, index = random_posterior(40, 3, 2, 2), torch.arange(40) * 31
    whole = posterior.sample(Streams(0, index, epoch=4))
    part = GaussianPosterior(posterior.mean[33:], posterior.log_var[33:]).sample(Streams(0, index[33:], epoch=4))
    assert torch.equal(whole[33:], part)
    assert not (whole == posterior.sample(Streams(0, index, epoch=5))).any()


def test_sample_passes_gradients_to_both_parameters():
    """d sample / d mean = 1 and d sample / d log_var = (sample - mean) / 2."""
    mean, log_var = torch.zeros(4, 2, requires_grad=True), torch.zeros(4, 2, requires_grad=True)
    sample = GaussianPosterior(mean, log_var).sample(Streams(0, torch.arange(4)))
    sample.sum().backward()
    assert torch.equal(mean.grad, torch.ones(4, 2))
    torch.testing.assert_close(log_var.grad, sample.detach() / 2)


def test_mode_is_the_mean():
    posterior = random_posterior(2, 3, 2, 2)
    assert torch.equal(posterior.mode(), posterior.mean)
