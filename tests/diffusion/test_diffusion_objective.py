"""The objective: laws of time, weights as errors of the clean data, dropout, and what a loss depends on."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from torch import Tensor, nn

from ldm_lightning.diffusion.denoiser import Denoiser
from ldm_lightning.diffusion.objective import DiscreteUniform, LogitNormal, MinSnr, Objective, Uniform, Unit
from ldm_lightning.diffusion.path import GaussianPath
from ldm_lightning.diffusion.prediction import Clean, Epsilon, Flow
from ldm_lightning.diffusion.schedule import LinearFlow
from ldm_lightning.errors import UserError
from ldm_lightning.rng import Streams

N = 20_000
UNIFORMS = torch.cat([torch.tensor([0.0, 1 - 2.0**-24]), Streams(0, torch.arange(N)).uniform("time")])


# --- laws of time ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "law", [Uniform(), DiscreteUniform(1), DiscreteUniform(1000), LogitNormal(), LogitNormal(-3, 4), LogitNormal(3, 4)]
)
def test_times_are_never_clean_and_never_past_the_noise(law):
    t = law(UNIFORMS)
    assert t.shape == UNIFORMS.shape
    assert t.dtype == torch.float32
    assert t.min() > 0
    assert t.max() <= 1


def test_uniform_law():
    assert stats.kstest(Uniform()(UNIFORMS).numpy(), "uniform").pvalue > 1e-3


@pytest.mark.parametrize(("mean", "std"), [(0.0, 1.0), (-1.2, 0.7)])
def test_logit_normal_law(mean, std):
    t = LogitNormal(mean, std)(UNIFORMS[2:]).double()
    assert stats.kstest(torch.logit(t).numpy(), "norm", (mean, std)).pvalue > 1e-3


@pytest.mark.parametrize("steps", [1, 3, 1000, 1023])
def test_discrete_law_gives_every_table_time_the_same_share(steps):
    uniform = (torch.arange(16 * steps) + 0.5) / (16 * steps)
    times, counts = DiscreteUniform(steps)(uniform).unique(return_counts=True)
    torch.testing.assert_close(times, torch.arange(1, steps + 1) / steps)
    assert (counts == 16).all()


# --- weights ---------------------------------------------------------------------------------------------------------


@settings(deadline=None, max_examples=40)
@given(t=st.floats(1e-3, 0.999), gamma=st.floats(0.1, 50), z0=st.floats(-3, 3), noise=st.floats(-3, 3))
def test_min_snr_weighs_the_error_of_the_clean_data(path, prediction, t, gamma, z0, noise):
    """Whatever the network predicts, weight x loss of its output = min(SNR, gamma) x loss of its clean data."""
    if isinstance(prediction, Epsilon) and isinstance(path.schedule, LinearFlow):
        return
    z0, noise, t = torch.tensor([[[z0]], [[noise]], [[t]]], dtype=torch.float64)
    t = t[0]
    denoiser = Denoiser(nn.Identity(), path, prediction)
    output = denoiser.target(z0, noise, t) + 0.37
    skip, out = prediction.coefficients(*path.coefficients(t, z0))
    clean = skip * path.corrupt(z0, t, noise) + out * output
    weighted = MinSnr(gamma)(denoiser, t) * path.loss(output, denoiser.target(z0, noise, t))
    expected = path.schedule.log_snr(t).exp().clamp(max=gamma) * path.loss(clean, z0)
    torch.testing.assert_close(weighted, expected, rtol=1e-7, atol=1e-10)


def test_min_snr_is_finite_at_every_time_of_training(path, prediction):
    if isinstance(prediction, Epsilon) and isinstance(path.schedule, LinearFlow):
        return
    weights = MinSnr()(Denoiser(nn.Identity(), path, prediction), torch.tensor([2.0**-24, 0.001, 0.5, 1.0]))
    assert weights.isfinite().all()


def test_unit_weight_is_one(path):
    assert torch.equal(Unit()(Denoiser(nn.Identity(), path, Flow()), torch.rand(5)), torch.ones(5))


# --- the loss --------------------------------------------------------------------------------------------------------


class Recorder(nn.Module):
    """Answers zero and keeps the question."""

    def forward(self, z: Tensor, t: Tensor, condition: dict[str, Tensor], drop: Tensor) -> Tensor:
        self.z, self.t, self.condition, self.drop = z, t, condition, drop
        return torch.zeros_like(z)


def test_network_sees_corrupted_latents_at_the_times_of_the_law(path):
    network, z0 = Recorder(), torch.full((N, 2), 0.7)
    condition = {"class": torch.arange(N)}
    objective = Objective(LogitNormal(), Unit())
    objective.loss(Denoiser(network, path, Flow()), z0, condition, Streams(0, torch.arange(N)))
    assert network.condition["class"] is condition["class"]
    assert stats.kstest(torch.logit(network.t.double()).numpy(), "norm").pvalue > 1e-3
    alpha, sigma = path.coefficients(network.t, z0)
    noise = (network.z - alpha * z0) / sigma
    for dimension in noise.T:
        assert stats.kstest(dimension.numpy(), "norm").pvalue > 1e-3
    together = torch.corrcoef(torch.stack([*noise.T, network.t, network.drop.float()]))
    assert (together - torch.eye(4)).abs().max() < 4 / math.sqrt(N)


def test_loss_is_weight_times_squared_error_of_the_target(path):
    network, z0 = Recorder(), torch.randn(50, 3, 2)
    objective = Objective(Uniform(), MinSnr(2.0))
    denoiser = Denoiser(network, path, Flow())
    loss = objective.loss(denoiser, z0, {}, Streams(0, torch.arange(50)))
    alpha, sigma = path.coefficients(network.t, z0)
    noise = (network.z - alpha * z0) / sigma  # the network answered 0, so its error is the target noise - z_0
    expected = MinSnr(2.0)(denoiser, network.t) * (noise - z0).square().mean((1, 2))
    torch.testing.assert_close(loss, expected, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("probability", [0.0, 0.1, 0.5, 1.0])
def test_condition_is_dropped_with_its_probability(probability):
    network, denoiser_path = Recorder(), GaussianPath(LinearFlow())
    objective = Objective(Uniform(), Unit(), probability)
    objective.loss(Denoiser(network, denoiser_path, Flow()), torch.zeros(N, 1), {}, Streams(0, torch.arange(N)))
    assert network.drop.dtype == torch.bool
    tolerance = 4 * math.sqrt(probability * (1 - probability) * N)
    assert abs(int(network.drop.sum()) - probability * N) <= tolerance


@pytest.mark.parametrize("probability", [-0.1, 1.1, math.nan])
def test_dropout_outside_the_unit_interval_is_refused(probability):
    with pytest.raises(UserError, match=r"condition_dropout=.* is a probability: set 0 to 1"):
        Objective(Uniform(), Unit(), probability)


@pytest.mark.parametrize("time_law", [Uniform(), DiscreteUniform(), LogitNormal()], ids=lambda law: type(law).__name__)
@pytest.mark.parametrize("sizes", [[50, 50], [1, 33, 31, 35]], ids=str)
def test_losses_do_not_depend_on_the_batch_split_bit_for_bit(path, network, time_law, sizes):
    index, label, z0 = torch.arange(100) * 7919, torch.arange(100) % 10, torch.randn(100, 4, 8, 8)
    objective = Objective(time_law, MinSnr(), condition_dropout=0.5)
    denoiser = Denoiser(network, path, Flow())

    def losses(rows: Tensor) -> Tensor:
        return objective.loss(denoiser, z0[rows], {"class": label[rows]}, Streams(0, index[rows], step=2))

    whole, order = losses(torch.arange(100)), torch.randperm(100)
    assert torch.equal(whole, torch.cat([losses(rows) for rows in torch.arange(100).split(sizes)]))
    assert torch.equal(whole[order], losses(order))


def test_losses_depend_on_seed_step_and_sample_only(path, network):
    objective, denoiser, z0 = Objective(Uniform(), Unit()), Denoiser(network, path, Flow()), torch.zeros(8, 2)
    condition = {"class": torch.zeros(8)}

    def losses(seed: int, step: int, start: int) -> Tensor:
        return objective.loss(denoiser, z0, condition, Streams(seed, torch.arange(start, start + 8), step))

    torch.manual_seed(1)
    one = losses(0, 0, 0)
    torch.manual_seed(2)
    assert torch.equal(one, losses(0, 0, 0))
    for other in (losses(1, 0, 0), losses(0, 1, 0), losses(0, 0, 8)):
        assert not (one == other).any()


# --- known optimum ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("time", [0.1, 0.5, 0.9])
def test_expected_loss_of_the_optimal_denoiser_is_the_posterior_variance(path, data, time):
    """For Gaussian data the least expected error is tr Cov(z_0 | z_t) / D, and any other denoiser has a larger one."""
    index = torch.arange(N)
    factor = torch.linalg.cholesky(data.covariance)
    z0 = data.mean + Streams(1, index).normal("data", (3,)).double() @ factor.T
    optimal = data.denoise(path)

    class Optimal(nn.Module):
        gain = 1.0

        def forward(self, z: Tensor, t: Tensor, condition: dict[str, Tensor], drop: Tensor) -> Tensor:
            return self.gain * optimal(z, t)

    network = Optimal()
    objective = Objective(lambda uniform: torch.full_like(uniform, time, dtype=torch.float64), Unit())
    losses = objective.loss(Denoiser(network, path, Clean()), z0, {}, Streams(0, index))
    _, marginal = data.marginal(path, time)
    alpha, _ = path.schedule.alpha_sigma(torch.tensor(time, dtype=torch.float64))
    covariance = data.covariance - alpha**2 * data.covariance @ torch.linalg.solve(marginal, data.covariance)
    assert abs(losses.mean() - covariance.trace() / 3) < 4 * losses.std() / math.sqrt(N)
    for network.gain in (0.9, 1.1):
        worse = objective.loss(Denoiser(network, path, Clean()), z0, {}, Streams(0, index))
        assert worse.mean() > losses.mean()
