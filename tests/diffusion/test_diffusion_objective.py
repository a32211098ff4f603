"""The objective: laws of time, weights as errors of the clean data, dropout, and what a loss depends on."""

from __future__ import annotations

import math

import pytest
import torch
from scipy import stats
from torch import Tensor, nn

from ldm_lightning.diffusion.denoiser import Denoiser
from ldm_lightning.diffusion.objective import (
    P2,
    DiscreteUniform,
    EdmWeight,
    Elbo,
    LogitNormal,
    LogNormal,
    MinSnr,
    Objective,
    Sigmoid,
    SoftMinSnr,
    Uniform,
    Unit,
    low_discrepancy,
)
from ldm_lightning.diffusion.path import GaussianPath
from ldm_lightning.diffusion.prediction import Clean, Edm, Flow
from ldm_lightning.diffusion.schedule import LinearFlow, Schedule, VarianceExploding
from ldm_lightning.errors import UserError
from ldm_lightning.rng import Streams

N = 20_000
UNIFORMS = torch.cat([torch.tensor([0.0, 1 - 2.0**-24]), Streams(0, torch.arange(N)).uniform("time")])


# --- laws of time ----------------------------------------------------------------------------------------------------


FLOW = LinearFlow()
LAWS = [Uniform(), DiscreteUniform(1), DiscreteUniform(1000), LogitNormal(), LogitNormal(-3, 4), LogitNormal(3, 4)]
LAWS += [LogNormal(), LogNormal(-20, 3), LogNormal(20, 3)]


@pytest.mark.parametrize("law", LAWS, ids=str)
def test_times_are_never_clean_and_never_past_the_noise(law, schedule):
    t = law(UNIFORMS, schedule)
    assert t.shape == UNIFORMS.shape
    assert t.dtype == torch.float32
    assert t.min() > 0
    assert t.max() <= 1


def test_uniform_law():
    assert stats.kstest(Uniform()(UNIFORMS, FLOW).numpy(), "uniform").pvalue > 1e-3


@pytest.mark.parametrize(("mean", "std"), [(0.0, 1.0), (-1.2, 0.7)])
def test_logit_normal_law(mean, std):
    t = LogitNormal(mean, std)(UNIFORMS[2:], FLOW).double()
    assert stats.kstest(torch.logit(t).numpy(), "norm", (mean, std)).pvalue > 1e-3


def test_log_normal_law_is_that_of_the_noise_level_on_every_schedule(schedule):
    t = LogNormal(-1.2, 1.2)(UNIFORMS[2:].double(), schedule)
    level = -schedule.log_snr(t) / 2
    inside = t < 1  # what lies beyond the schedule is trained at its end
    end = -schedule.log_snr(torch.ones((), dtype=torch.float64)) / 2
    beyond = stats.norm(-1.2, 1.2).sf(end)
    assert abs((~inside).double().mean() - beyond) < 4 * math.sqrt(beyond / N) + 1 / N
    expected = stats.truncnorm(-math.inf, (end + 1.2) / 1.2, -1.2, 1.2)
    assert stats.kstest(level[inside].numpy(), expected.cdf).pvalue > 1e-3


@pytest.mark.parametrize("steps", [1, 3, 1000, 1023])
def test_discrete_law_gives_every_table_time_the_same_share(steps):
    uniform = (torch.arange(16 * steps) + 0.5) / (16 * steps)
    times, counts = DiscreteUniform(steps)(uniform, FLOW).unique(return_counts=True)
    torch.testing.assert_close(times, torch.arange(1, steps + 1) / steps)
    assert (counts == 16).all()


# --- evenly spread numbers -------------------------------------------------------------------------------------------


def gap(numbers: Tensor) -> float:
    """The largest distance between neighbours, round the circle."""
    ordered = numbers.double().sort().values
    return float(torch.cat([ordered, ordered[:1] + 1]).diff().max())


@pytest.mark.parametrize("start", [0, 12345, 2**40])
@pytest.mark.parametrize("count", [10, 100, 5000])
def test_neighbouring_samples_get_evenly_spread_numbers(start, count):
    spread = low_discrepancy(Streams(3, torch.arange(start, start + count), epoch=7))
    assert spread.dtype == torch.float32
    assert ((spread >= 0) & (spread < 1)).all()
    assert gap(spread) < 2.7 / count  # independent ones: about log(count) / count


@pytest.mark.parametrize("epochs", [10, 100, 400])
def test_one_sample_gets_evenly_spread_numbers_over_the_epochs(epochs):
    numbers = torch.cat([low_discrepancy(Streams(3, torch.tensor([99]), step)) for step in range(epochs)])
    assert gap(numbers) < 3.5 / epochs


def test_every_single_number_is_uniform_over_seeds():
    numbers = torch.cat([low_discrepancy(Streams(seed, torch.tensor([17]), 4)) for seed in range(500)])
    assert stats.kstest(numbers.numpy(), "uniform").pvalue > 1e-3


def test_neither_order_nor_split_moves_a_number():
    index, order = torch.arange(1000) * 7919, torch.randperm(1000)
    whole = low_discrepancy(Streams(0, index, 5))
    assert torch.equal(whole[order], low_discrepancy(Streams(0, index[order], 5)))
    parts = [low_discrepancy(Streams(0, part, 5)) for part in index.split([1, 499, 500])]
    assert torch.equal(whole, torch.cat(parts))


def test_spread_numbers_make_the_mean_loss_of_neighbours_steadier():
    """What it is for: here the variance of a validation loss falls more than thirtyfold."""

    class Half(nn.Module):
        def forward(self, z: Tensor, t: Tensor, condition: dict[str, Tensor], drop: Tensor) -> Tensor:
            return t.view(-1, 1).expand_as(z)  # its error depends on t much more than on the sample

    class Still(Streams):
        def normal(self, purpose: str, shape: tuple[int, ...] = ()) -> Tensor:
            return torch.zeros(len(self.index), *shape)

    denoiser, index, z0 = Denoiser(Half(), GaussianPath(FLOW), Clean()), torch.arange(256), torch.zeros(256, 4)
    variances = [
        torch.stack([objective.loss(denoiser, z0, {}, Still(seed, index)).mean() for seed in range(50)]).var()
        for objective in (Objective(Uniform(), Unit()), Objective(Uniform(), Unit(), draw=low_discrepancy))
    ]
    assert variances[1] < variances[0] / 30


# --- weights ---------------------------------------------------------------------------------------------------------


def snr_of(schedule: Schedule, t: Tensor) -> Tensor:
    alpha, sigma = schedule.alpha_sigma(t)
    return (alpha / sigma) ** 2


def snr_fall(schedule: Schedule, t: Tensor) -> Tensor:
    """-dSNR/dt by finite differences."""
    step = 1e-5 * torch.minimum(t, 1 - t)
    return (snr_of(schedule, t - step) - snr_of(schedule, t + step)) / (2 * step)


# Weighting, and the published weight of the error of the clean data.
WEIGHTS = {
    "min_snr": (MinSnr(5.0), lambda s, t: snr_of(s, t).clamp(max=5)),
    "soft_min_snr": (SoftMinSnr(4.0), lambda s, t: 1 / (1 / snr_of(s, t) + 1 / 4)),
    # of the noise's error, which is SNR times that of the clean data
    "p2": (P2(1.0, 0.5), lambda s, t: snr_of(s, t) / (1 + snr_of(s, t)) ** 0.5),
    # (sigma^2 + sigma_data^2) / (sigma sigma_data)^2 of the noise level
    "edm": (EdmWeight(0.5), lambda s, t: (1 / snr_of(s, t) + 0.25) / (0.25 / snr_of(s, t))),
    "elbo": (Elbo(), lambda s, t: snr_fall(s, t) / 2),
    "sigmoid": (Sigmoid(2.0), lambda s, t: (2 - snr_of(s, t).log()).sigmoid() * snr_fall(s, t) / 2),
}


@pytest.mark.usefixtures("allowed")
@pytest.mark.parametrize("name", WEIGHTS)
def test_weights_are_the_published_ones_of_the_clean_data_s_error(path, prediction, name):
    """Whatever the network predicts, weight x loss of its output = published weight x loss of its clean data."""
    weighting, published = WEIGHTS[name]
    t = (torch.arange(50, dtype=torch.float64) * 20 + 10.37) / 1000  # between the entries of tables
    z0, noise, error = torch.randn(3, 50, 1, dtype=torch.float64)
    denoiser = Denoiser(nn.Identity(), path, prediction)
    output = denoiser.target(z0, noise, t) + error
    skip, out = prediction.coefficients(*path.coefficients(t, z0))
    clean = skip * path.corrupt(z0, t, noise) + out * output
    weighted = weighting(denoiser, t) * path.loss(output, denoiser.target(z0, noise, t))
    torch.testing.assert_close(weighted, published(path.schedule, t) * path.loss(clean, z0), rtol=2e-5, atol=1e-8)


@pytest.mark.usefixtures("allowed")
@pytest.mark.parametrize("name", WEIGHTS)
def test_weights_are_finite_at_every_time_of_training(path, prediction, name):
    weights = WEIGHTS[name][0](Denoiser(nn.Identity(), path, prediction), torch.tensor([2.0**-24, 0.001, 0.5, 1.0]))
    assert weights.isfinite().all()
    assert (weights >= 0).all()


@pytest.mark.parametrize("sigma_data", [0.5, 1.0])
def test_edm_weight_of_edm_prediction_is_one(path, signal_left, sigma_data):
    """Karras et al. 2022, table 1: lambda = 1 / c_out^2, so that unit weight is EDM's loss too."""
    if not signal_left:
        pytest.skip("refused")
    t = torch.linspace(0.01, 1, 50, dtype=torch.float64)
    weights = EdmWeight(sigma_data)(Denoiser(nn.Identity(), path, Edm(sigma_data)), t)
    torch.testing.assert_close(weights, torch.ones_like(t))


def test_edm_weight_is_lambda_of_sigma_in_clean_space():
    t = torch.linspace(0.01, 1, 50, dtype=torch.float64)
    _, sigma = VarianceExploding().alpha_sigma(t)
    weights = EdmWeight(0.5)(Denoiser(nn.Identity(), GaussianPath(VarianceExploding()), Clean()), t)
    torch.testing.assert_close(weights, (sigma**2 + 0.5**2) / (sigma * 0.5) ** 2)


def test_sigmoid_weight_integrates_to_the_same_on_every_schedule(schedule):
    """Over the log-SNR from -6 to 6, which the schedules have in common: int w SNR / 2 dlogSNR."""
    bounds = torch.linspace(6, max(-6, schedule.log_snr(torch.ones(1).double()).item()), 4001, dtype=torch.float64)
    t = schedule.time(bounds)
    middle = (t[1:] + t[:-1]) / 2
    weights = Sigmoid(1.0)(Denoiser(nn.Identity(), GaussianPath(schedule), Clean()), middle)
    expected = torch.nn.functional.softplus(bounds[0] - 1) - torch.nn.functional.softplus(bounds[-1] - 1)
    assert (weights * t.diff()).sum().item() == pytest.approx(math.e / 2 * expected.item(), rel=1e-3)


@pytest.mark.parametrize("weighting", [Elbo(), Sigmoid()], ids=str)
def test_slopes_are_taken_in_validation_too(path, weighting):
    denoiser, t = Denoiser(nn.Identity(), path, Flow()), torch.rand(5)
    expected = weighting(denoiser, t)
    with torch.inference_mode():
        assert torch.equal(weighting(denoiser, torch.clone(t)), expected)
    assert not expected.requires_grad


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


OBJECTIVES = [
    Objective(Uniform(), MinSnr(), 0.5),
    Objective(DiscreteUniform(), P2(gamma=0.7), 0.5),
    Objective(LogitNormal(), Sigmoid(), 0.5, low_discrepancy),
    Objective(LogNormal(), EdmWeight(), 0.5),
]


@pytest.mark.parametrize("objective", OBJECTIVES, ids=lambda objective: type(objective.weighting).__name__)
@pytest.mark.parametrize("sizes", [[50, 50], [1, 33, 31, 35]], ids=str)
def test_losses_do_not_depend_on_the_batch_split_bit_for_bit(path, signal_left, network, objective, sizes):
    index, label, z0 = torch.arange(100) * 7919, torch.arange(100) % 10, torch.randn(100, 4, 8, 8)
    denoiser = Denoiser(network, path, Edm() if signal_left else Flow())

    def losses(rows: Tensor) -> Tensor:
        return objective.loss(denoiser, z0[rows], {"class": label[rows]}, Streams(0, index[rows], epoch=2))

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
    objective = Objective(lambda uniform, schedule: torch.full_like(uniform, time, dtype=torch.float64), Unit())
    losses = objective.loss(Denoiser(network, path, Clean()), z0, {}, Streams(0, index))
    _, marginal = data.marginal(path, time)
    alpha, _ = path.schedule.alpha_sigma(torch.tensor(time, dtype=torch.float64))
    covariance = data.covariance - alpha**2 * data.covariance @ torch.linalg.solve(marginal, data.covariance)
    assert abs(losses.mean() - covariance.trace() / 3) < 4 * losses.std() / math.sqrt(N)
    for network.gain in (0.9, 1.1):
        worse = objective.loss(Denoiser(network, path, Clean()), z0, {}, Streams(0, index))
        assert worse.mean() > losses.mean()
