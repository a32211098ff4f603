"""The variational bound as a training loss, in continuous time and over a table, against its closed forms."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from ldm_lightning.diffusion.denoised import answering
from ldm_lightning.diffusion.denoiser import Denoiser
from ldm_lightning.diffusion.likelihood import VariationalBound
from ldm_lightning.diffusion.objective import (
    DiscreteUniform,
    Elbo,
    LossSecondMoment,
    Objective,
    Sigmoid,
    Uniform,
    VarianceBound,
    low_discrepancy,
)
from ldm_lightning.diffusion.objective.term import Answer
from ldm_lightning.diffusion.path import GaussianPath
from ldm_lightning.diffusion.prediction import Clean, Epsilon, Flow, LearnedVariance, Velocity
from ldm_lightning.diffusion.sampler import uniform_grid
from ldm_lightning.rng import Streams
from tests.diffusion.conftest import SCHEDULES

T = 1000
TABLE = torch.arange(1, T + 1, dtype=torch.float64) / T


def terms(path: GaussianPath, prediction, weighting, t: Tensor, variance: float = 1.0) -> Tensor:
    """Expected weighted losses at times t of the optimal denoiser of N(0, variance) data."""
    alpha, sigma = path.schedule.alpha_sigma(t)
    _, out = prediction.coefficients(alpha, sigma)
    error = variance * sigma**2 / (alpha**2 * variance + sigma**2)
    return weighting(Denoiser(nn.Identity(), path, prediction), t) * error / out**2


def snr(path: GaussianPath, t: Tensor) -> Tensor:
    alpha, sigma = path.schedule.alpha_sigma(t)
    return (alpha / sigma).square()


@pytest.mark.parametrize(("name", "nats"), [("linear", 5.0700), ("flow", 8.3195)])
@pytest.mark.parametrize("prediction", [Clean(), Velocity(), Flow()], ids=str)
def test_the_terms_of_a_table_add_up_to_the_bound_of_gaussian_data(name, nats, prediction):
    """T - 1 divergences, and a decoder that is as far off as it expects to be."""
    path = GaussianPath(SCHEDULES[name]())
    objective = Objective(DiscreteUniform(T), Elbo())
    values = terms(path, prediction, objective.weighting, TABLE)
    assert values[1:].sum().item() / T == pytest.approx(nats, abs=1e-4)
    assert values[1:].mean().item() == pytest.approx(nats * T / (T - 1), abs=1e-4)  # 5.075 and 8.328
    assert values[0].item() / T == pytest.approx(0.5)


@pytest.mark.parametrize("prediction", [Clean(), Velocity(), Flow(), Epsilon()], ids=str)
def test_weights_are_differences_at_every_time_of_a_table(path, signal_left, prediction):
    if isinstance(prediction, Epsilon) and not signal_left:
        pytest.skip("refused")
    denoiser = Denoiser(nn.Identity(), path, prediction)
    weighting = Objective(DiscreteUniform(T), Elbo()).weighting
    ratio = snr(path, TABLE)
    expected = T / 2 * torch.cat([1 + ratio[:1], -ratio.diff()])
    _, out = prediction.coefficients(*path.schedule.alpha_sigma(TABLE))
    torch.testing.assert_close(weighting(denoiser, TABLE), expected * torch.as_tensor(out).double() ** 2)
    # As the law gives them: rounded to single precision.
    times = DiscreteUniform(T)((torch.arange(T) + 0.5) / T, path.schedule)
    single = weighting(denoiser, times)
    assert single.dtype == torch.float32
    if not isinstance(prediction, Epsilon):  # which rounding of a time near the end multiplies
        torch.testing.assert_close(single.double(), weighting(denoiser, TABLE), rtol=1e-3, atol=1e-6)


def test_the_loss_over_a_table_is_the_likelihoods_bound(path, data):
    """Term by term, with the same noise: what is missing has no network in it."""
    steps, count = 20, 5
    z0, streams = data.mean + torch.randn(count, 3).double(), Streams(0, torch.arange(count))
    optimal = data.denoise(path)
    weighting = Objective(DiscreteUniform(steps), Elbo()).weighting
    denoiser = Denoiser(nn.Identity(), path, Clean())
    loss = torch.zeros(count).double()
    for k in range(1, steps + 1):
        t = torch.full((count,), k / steps).double()
        clean = optimal(path.corrupt(z0, t, streams.normal(f"bound/{k}", (3,))), t)
        loss += weighting(denoiser, t) * path.loss(clean, z0) / steps
    alpha, sigma = path.schedule.alpha_sigma(torch.tensor([1 / steps, 1.0]).double())
    power = alpha**2 + sigma**2
    prior = (power[1] / sigma[1] ** 2).log() / 2 + alpha[1] ** 2 * (z0.square().mean(1) - 1) / (2 * power[1])
    width = (2 * math.pi * sigma[0] ** 2 / power[0]).log() / 2
    bound = VariationalBound(steps, uniform_grid)(answering(optimal), path, z0, streams).nats
    torch.testing.assert_close(prior + loss + width, bound, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("variance", [1.0, 0.3])
def test_the_integral_in_continuous_time_is_the_mutual_information(path, variance):
    """I(z_0; z_a) - I(z_0; z_b) of Gaussian data between two times, by trapezoids that are even in log-SNR."""
    ends = path.schedule.log_snr(torch.tensor([0.01, 0.99]).double())
    t = path.schedule.time(torch.linspace(*ends.tolist(), 20_001, dtype=torch.float64))
    value = torch.trapezoid(terms(path, Clean(), Objective(Uniform(), Elbo()).weighting, t, variance), t)
    told = torch.log1p(variance * snr(path, t[[0, -1]])) / 2
    assert value.item() == pytest.approx((told[0] - told[1]).item(), rel=1e-3)


def test_the_law_of_times_decides_which_bound():
    for weighting in (Elbo(), Sigmoid(1.0)):
        assert Objective(Uniform(), weighting).weighting.steps is None
        assert Objective(DiscreteUniform(50), weighting, draw=low_discrepancy).weighting.steps == 50
    assert Objective(DiscreteUniform(50), Sigmoid(1.0)).weighting.bias == 1.0


def test_the_sigmoid_over_a_table_is_a_share_of_the_bound(path):
    denoiser = Denoiser(nn.Identity(), path, Clean())
    share = torch.sigmoid(2 - path.schedule.log_snr(TABLE))
    torch.testing.assert_close(Sigmoid(2.0, T)(denoiser, TABLE), share * Elbo(T)(denoiser, TABLE))


def test_importance_sampling_leaves_the_bound_of_a_table_what_it_is():
    """Whatever it has learned: summed over evenly spread numbers, its weights give back the plain mean."""
    path, importance = GaussianPath(SCHEDULES["linear"]()), LossSecondMoment(T, memory=1)
    values = terms(path, Clean(), Elbo(T), TABLE)
    importance.observe((torch.arange(T) + 0.5) / T, values)
    importance.advance()
    moved, weight = importance((torch.arange(400 * T) + 0.5) / (400 * T))
    picked = DiscreteUniform(T)(moved, path.schedule)
    drawn = (weight.double() * values[(picked.double() * T).round().long() - 1]).mean()
    assert drawn.item() == pytest.approx(values.mean().item(), rel=1e-3)
    assert picked.float().mean() < 0.1  # nearly all of it lies at the clean end


@pytest.mark.parametrize("name", ["linear", "flow"])
def test_the_variance_term_over_a_table_is_the_exact_bound_of_gaussian_data(name):
    """With the right variance a step costs what it tells: half the logarithm of the ratio of its two extremes."""
    path, steps, count = GaussianPath(SCHEDULES[name]()), 50, 4000
    denoiser = Denoiser(nn.Identity(), path, LearnedVariance(Clean()))
    term, z0, streams = VarianceBound(steps), torch.randn(count, 1).double(), Streams(0, torch.arange(count))
    for k in (1, 2, 7, 50):
        t, noise = torch.full((count,), k / steps).double(), streams.normal(f"{k}", (1,)).double()
        alpha, sigma = path.coefficients(t, z0)
        z = path.corrupt(z0, t, noise)
        said = torch.cat([alpha / (alpha**2 + sigma**2) * z, torch.ones_like(z)], 1)  # the upper extreme is right
        value = term(Answer(denoiser, z0, noise, t, said, z0, torch.ones(count))) / steps
        above, below = (1 + snr(path, torch.tensor([(k - 1) / steps, k / steps]).double())).tolist()
        expected = math.log(above / below) / 2 if k > 1 else math.log(2 * math.pi * math.e / below) / 2
        assert value.mean().item() == pytest.approx(expected, abs=5 * float(value.std()) / math.sqrt(count) + 1e-6)
