"""The Gaussian path: corruption, and one backward step by Bayes' rule."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from ldm_lightning.diffusion.path import GaussianPath, expand
from ldm_lightning.diffusion.schedule import (
    TableSchedule,
    cosine_betas,
    laplace_betas,
    linear_betas,
    scaled_linear_betas,
    sigmoid_betas,
    zero_terminal_snr,
)
from ldm_lightning.rng import Streams

TIMES = st.lists(st.integers(0, 2000), min_size=2, max_size=2, unique=True).map(
    lambda ks: [k / 2000 for k in sorted(ks)]
)


def double(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


def step(path: GaussianPath, z_t: float, z0: float, s: float, t: float) -> tuple[float, float]:
    """Mean and standard deviation of q(z_s | z_t, z_0) for one number."""
    mean, std = path.posterior(double(z_t)[:, None], double(z0)[:, None], double(s), double(t))
    return mean.item(), std.item()


def scalars(path: GaussianPath, t: float) -> tuple[float, float]:
    alpha, sigma = path.schedule.alpha_sigma(double(t))
    return alpha.item(), sigma.item()


def test_expand_broadcasts_over_everything_but_the_batch():
    assert expand(torch.arange(2), torch.zeros(2, 3, 4, 5)).shape == (2, 1, 1, 1)
    assert expand(torch.arange(2), torch.zeros(2)).shape == (2,)


def test_corrupt_scales_signal_and_noise_by_the_schedule(path):
    z0, noise = torch.randn(2, 5, 3, 2, 2, dtype=torch.float64)
    t = double(0, 0.1, 0.5, 0.9, 1)
    alpha, sigma = path.schedule.alpha_sigma(t)
    expected = torch.einsum("b,bcij->bcij", alpha, z0) + torch.einsum("b,bcij->bcij", sigma, noise)
    torch.testing.assert_close(path.corrupt(z0, t, noise), expected)
    assert torch.equal(path.corrupt(z0, t, noise)[0], z0[0])


def test_corrupted_samples_have_the_moments_of_q(path):
    count, t = 20_000, 0.4
    z0 = torch.tensor([1.5, -0.5]).expand(count, 2)
    z = path.corrupt(z0, torch.full((count,), t), path.noise(Streams(0, torch.arange(count)), (2,)))
    alpha, sigma = scalars(path, t)
    for dimension, value in zip(z.T, (1.5, -0.5), strict=True):
        assert stats.kstest(dimension.numpy(), "norm", (alpha * value, sigma)).pvalue > 1e-3
    assert abs(torch.corrcoef(z.T)[0, 1]) < 4 / count**0.5


def test_prior_is_the_marginal_of_standardized_latents(path):
    streams = Streams(0, torch.arange(20_000))
    z = path.prior(streams, (2,))
    alpha, sigma = scalars(path, 1)
    assert stats.kstest(z.flatten().numpy(), "norm", (0, (alpha**2 + sigma**2) ** 0.5)).pvalue > 1e-3
    noise = path.noise(streams, (2,))
    assert abs(torch.corrcoef(torch.stack([z[:, 0], noise[:, 0]]))[0, 1]) < 4 / 20_000**0.5


@settings(deadline=None, max_examples=50)
@given(times=TIMES, z_t=st.floats(-3, 3), z0=st.floats(-3, 3))
def test_posterior_is_the_joint_gaussian_conditioned(path, times, z_t, z0):
    s, t = times
    (alpha_s, sigma_s), (alpha_t, sigma_t) = scalars(path, s), scalars(path, t)
    ratio = alpha_t / alpha_s  # z_t = ratio z_s + fresh noise, so cov(z_s, z_t | z_0) = ratio sigma_s^2
    covariance = np.array([[sigma_s**2, ratio * sigma_s**2], [ratio * sigma_s**2, sigma_t**2]])
    gain = covariance[0, 1] / covariance[1, 1]
    mean, std = step(path, z_t, z0, s, t)
    assert mean == pytest.approx(alpha_s * z0 + gain * (z_t - alpha_t * z0), abs=1e-9)
    assert std**2 == pytest.approx(covariance[0, 0] - gain * covariance[1, 0], abs=1e-12)


@settings(deadline=None, max_examples=50)
@given(times=TIMES)
def test_posterior_after_corruption_is_the_corruption_at_the_earlier_time(path, times):
    """If z_t ~ q(.|z_0), then a draw from q(z_s | z_t, z_0) is distributed as q(z_s | z_0)."""
    s, t = times
    (alpha_s, sigma_s), (alpha_t, sigma_t) = scalars(path, s), scalars(path, t)
    (of_z_t, std), (of_z0, _) = step(path, 1, 0, s, t), step(path, 0, 1, s, t)
    assert of_z_t * alpha_t + of_z0 == pytest.approx(alpha_s, abs=1e-12)
    assert (of_z_t * sigma_t) ** 2 + std**2 == pytest.approx(sigma_s**2, abs=1e-12)


TABLES = {
    "linear": linear_betas(),
    "scaled_linear": scaled_linear_betas(),
    "cosine": cosine_betas(),
    "sigmoid": sigmoid_betas(),
    "laplace": laplace_betas(),
    "zero_snr": zero_terminal_snr(linear_betas()),
}


@pytest.mark.parametrize("name", TABLES)
def test_stepwise_corruption_has_the_moments_of_the_closed_form(name):
    """z_k = sqrt(1 - beta_k) z_{k-1} + sqrt(beta_k) noise: the mean's factor and the variance, by recursion."""
    betas = TABLES[name]
    factor, variance, closed = 1.0, 0.0, GaussianPath(TableSchedule(betas))
    for k, beta in enumerate(betas.tolist(), start=1):
        factor, variance = (1 - beta) ** 0.5 * factor, (1 - beta) * variance + beta
        alpha, sigma = scalars(closed, k / len(betas))
        assert alpha == pytest.approx(factor, rel=1e-9, abs=1e-12)
        assert sigma**2 == pytest.approx(variance, rel=1e-9)


@pytest.mark.parametrize("name", TABLES)
def test_stepwise_corruption_draws_from_the_closed_form(name):
    betas, count, steps, z0 = TABLES[name], 4000, 300, 1.7
    stepwise, streams = torch.full((count,), z0), Streams(0, torch.arange(count))
    for k, beta in enumerate(betas[:steps].tolist()):
        stepwise = (1 - beta) ** 0.5 * stepwise + beta**0.5 * streams.normal(f"step {k}")
    path, t = GaussianPath(TableSchedule(betas)), torch.full((count,), steps / len(betas))
    closed = path.corrupt(torch.full((count,), z0), t, path.noise(streams, ()))
    assert stats.ks_2samp(stepwise.numpy(), closed.numpy()).pvalue > 1e-3
    alpha, sigma = scalars(path, steps / len(betas))
    assert stats.kstest(stepwise.numpy(), "norm", (alpha * z0, sigma)).pvalue > 1e-3


@pytest.mark.parametrize("betas", TABLES.values(), ids=TABLES)
def test_posterior_between_table_entries_is_equation_7_of_ddpm(betas):
    path, steps, beta = GaussianPath(TableSchedule(betas)), len(betas), betas.numpy()
    after = np.cumprod(1 - beta)
    before = np.concatenate([[1.0], after[:-1]])
    t = torch.arange(1, steps + 1, dtype=torch.float64) / steps
    one, zero = torch.ones(2, steps, 1, dtype=torch.float64).mul_(double(1, 0)[:, None, None])
    of_z0, _ = path.posterior(zero, one, t - 1 / steps, t)
    of_z_t, std = path.posterior(one, zero, t - 1 / steps, t)
    np.testing.assert_allclose(of_z0[:, 0], before**0.5 * beta / (1 - after), rtol=1e-7)
    np.testing.assert_allclose(of_z_t[:, 0], (1 - beta) ** 0.5 * (1 - before) / (1 - after), rtol=1e-7, atol=1e-9)
    np.testing.assert_allclose(std[:, 0] ** 2, (1 - before) / (1 - after) * beta, rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_posterior_of_the_whole_way_is_the_clean_data(path, dtype):
    z_t, z0 = torch.randn(2, 3, 4, dtype=dtype)
    mean, std = path.posterior(z_t, z0, torch.zeros(3, dtype=dtype), torch.ones(3, dtype=dtype))
    assert torch.equal(mean, z0)
    assert torch.equal(std, torch.zeros(3, 1, dtype=dtype))


def test_posterior_stays_precise_in_float32_for_close_times(path):
    s, t = torch.tensor([0.5]), torch.tensor([0.5 + 2**-10])
    _, single = path.posterior(torch.zeros(1, 1), torch.zeros(1, 1), s, t)
    _, reference = path.posterior(torch.zeros(1, 1).double(), torch.zeros(1, 1).double(), s.double(), t.double())
    assert single.item() == pytest.approx(reference.item(), rel=2e-4)


def test_loss_is_a_mean_over_each_sample(path):
    output, target = torch.randn(2, 3, 2, 4, 4)
    expected = [float(((output[i] - target[i]) ** 2).mean()) for i in range(3)]
    assert path.loss(output, target).tolist() == pytest.approx(expected)
