"""Likelihood against the truth: for Gaussian data density and denoiser are known in closed form."""

from __future__ import annotations

import math
from collections.abc import Mapping

import pytest
import torch
from torch import Tensor
from torch.distributions import MultivariateNormal

from ldm_lightning.diffusion.denoised import answering
from ldm_lightning.diffusion.denoiser import Denoiser
from ldm_lightning.diffusion.guidance import ClassifierFree
from ldm_lightning.diffusion.likelihood import ProbabilityFlow, VariationalBound, bound_grid, prior_log_density
from ldm_lightning.diffusion.path import GaussianPath
from ldm_lightning.diffusion.prediction import Clean, Epsilon, Flow, Velocity
from ldm_lightning.diffusion.sampler import uniform_grid
from ldm_lightning.diffusion.schedule import LinearFlow
from ldm_lightning.errors import UserError
from ldm_lightning.rng import Streams
from tests.diffusion.conftest import SCHEDULES, GaussianData


@pytest.fixture(scope="session", params=[Epsilon(), Clean(), Velocity(), Flow()], ids=str)
def prediction(request):
    """Those that show a network z and t as they are."""
    return request.param


COUNT = 12
STREAMS = Streams(0, torch.arange(COUNT))
EXACT = ProbabilityFlow(1e-6, probes=None)


def law(data: GaussianData, path: GaussianPath | None = None) -> MultivariateNormal:
    """The data's distribution, or its marginal at t = 1."""
    return MultivariateNormal(*(data.marginal(path, 1.0) if path else (data.mean, data.covariance)))


def draw(data: GaussianData, count: int = COUNT) -> Tensor:
    return law(data).sample((count,))


def entropy_rate(data: GaussianData, z0: Tensor) -> Tensor:
    """(B,) exact negative log-likelihood per dimension."""
    return -law(data).log_prob(z0) / z0.shape[1]


@pytest.fixture(scope="module")
def many_dimensions() -> GaussianData:
    """16 correlated dimensions of unit variance, with means, as the latents of one class have."""
    factor = torch.randn(16, 16, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    covariance = factor @ factor.T / 16 + 0.05 * torch.eye(16)
    deviation = covariance.diagonal().sqrt()
    return GaussianData(torch.linspace(-1, 1, 16).double(), covariance / torch.outer(deviation, deviation))


# --- the probability flow --------------------------------------------------------------------------------------------


def test_the_flow_has_the_exact_likelihood(path, data):
    z0 = draw(data)
    result = EXACT(answering(data.denoise(path)), path, z0, STREAMS, law(data, path).log_prob)
    error = (result.nats - entropy_rate(data, z0)).abs().max() * 3
    assert error < 1e-4  # nats of a whole sample
    assert result.evaluations < 100


def test_the_error_falls_with_the_tolerance(path, data):
    z0 = draw(data)
    errors = []
    for tolerance in (1e-2, 1e-4, 1e-6):
        method = ProbabilityFlow(tolerance, probes=None, start=1e-7)
        result = method(answering(data.denoise(path)), path, z0, STREAMS, law(data, path).log_prob)
        errors.append(float((result.nats - entropy_rate(data, z0)).abs().max()))
    assert errors[0] > 5 * errors[1] > 25 * errors[2]


@pytest.mark.parametrize("name", ["scaled_linear", "vp", "linear"])
def test_the_prior_of_a_path_with_signal_left_has_a_floor_of_its_own(name, many_dimensions, capsys):
    """There z_1 is no standard normal: what that costs is the two densities' ratio, and no tolerance mends it."""
    path, data = GaussianPath(SCHEDULES[name]()), many_dimensions
    z0 = draw(data, 64)
    streams = Streams(0, torch.arange(64))
    exact = EXACT(answering(data.denoise(path)), path, z0, streams, law(data, path).log_prob)
    floored = EXACT(answering(data.denoise(path)), path, z0, streams)
    assert (exact.nats - entropy_rate(data, z0)).abs().max() * 16 < 1e-4
    matrix, shift = data.transport(path)
    z1 = torch.linalg.solve(matrix, (z0 - shift).T).T
    expected = (law(data, path).log_prob(z1) - prior_log_density(path, z1)) / 16
    torch.testing.assert_close(floored.nats - exact.nats, expected, rtol=0, atol=1e-5)
    mean, covariance = data.marginal(path, 1.0)
    floor = torch.distributions.kl_divergence(
        MultivariateNormal(mean, covariance), MultivariateNormal(torch.zeros(16).double(), torch.eye(16).double())
    )
    with capsys.disabled():
        print(f" floor of the prior, 16 dimensions, {name}: {floor:.1e} nats, {floor / 16:.1e} per dimension", end=" ")
    assert (1e-3 if name == "scaled_linear" else 1e-5) < floor < 1e-1


@pytest.mark.parametrize("name", ["flow", "cosine"])
def test_paths_that_end_in_noise_have_no_floor(name, data):
    path, z0 = GaussianPath(SCHEDULES[name]()), draw(data)
    result = EXACT(answering(data.denoise(path)), path, z0, STREAMS)
    assert (result.nats - entropy_rate(data, z0)).abs().max() * 3 < 1e-3


def test_a_prediction_is_only_a_way_to_write_it(path, data, prediction, signal_left):
    """A network in float32 under each prediction, through Denoiser and guidance, of the same model."""
    if isinstance(prediction, Epsilon) and not signal_left:
        pytest.skip("refused: the path ends without signal")
    optimal = data.denoise(path)

    class Network(torch.nn.Module):
        def forward(self, z: Tensor, t: Tensor, condition: Mapping[str, Tensor], drop: Tensor) -> Tensor:
            alpha, sigma = path.coefficients(t.double(), z)
            clean = optimal(z.double(), t.double())
            return prediction.target(clean, (z - alpha * clean) / sigma, alpha, sigma).float()

    z0 = draw(data).float()
    denoise = ClassifierFree()(Denoiser(Network(), path, prediction), {})
    result = ProbabilityFlow(1e-5, probes=None)(denoise, path, z0, STREAMS, law(data, path).log_prob)
    torch.testing.assert_close(result.nats, entropy_rate(data, z0.double()), rtol=0, atol=5e-4)


def test_latents_may_have_any_shape(path, many_dimensions):
    z0, flat = draw(many_dimensions), many_dimensions.denoise(path)
    whole = EXACT(answering(lambda z, t: flat(z.flatten(1), t).view_as(z)), path, z0.view(-1, 4, 2, 2), STREAMS)
    torch.testing.assert_close(whole.nats, EXACT(answering(flat), path, z0, STREAMS).nats, rtol=0, atol=1e-9)


def test_a_split_into_batches_agrees_to_the_tolerance(path, data):
    z0 = draw(data)

    def nats(rows: slice, method: ProbabilityFlow) -> Tensor:
        return method(answering(data.denoise(path)), path, z0[rows], Streams(0, torch.arange(COUNT)[rows])).nats

    for method in (EXACT, ProbabilityFlow(1e-6)):
        split = torch.cat([nats(slice(0, 5), method), nats(slice(5, COUNT), method)])
        torch.testing.assert_close(nats(slice(COUNT), method), split, rtol=0, atol=3e-5)


# --- Hutchinson's estimate -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("probes", [1, 4])
def test_probes_are_unbiased(data, probes):
    path, count = GaussianPath(LinearFlow()), 2000
    z0 = draw(data, 1).expand(count, -1)
    method, streams = ProbabilityFlow(1e-5, probes), Streams(0, torch.arange(count))
    nats = method(answering(data.denoise(path)), path, z0, streams, law(data, path).log_prob).nats
    deviation = float(nats.std())
    assert deviation > 0.02
    assert float(nats.mean()) == pytest.approx(float(entropy_rate(data, z0)[0]), abs=4 * deviation / math.sqrt(count))


def test_more_probes_scatter_less(data):
    path, count = GaussianPath(LinearFlow()), 2000
    z0, streams = draw(data, 1).expand(count, -1), Streams(0, torch.arange(count))
    one, four = (
        float(ProbabilityFlow(1e-4, probes)(answering(data.denoise(path)), path, z0, streams).nats.std())
        for probes in (1, 4)
    )
    assert one / four == pytest.approx(2, rel=0.1)


def test_one_probe_is_exact_where_dimensions_do_not_mix(path, data):
    """A Rademacher probe reads the diagonal exactly if there is nothing beside it."""
    apart = GaussianData(data.mean, torch.diag(data.covariance.diagonal()))
    z0 = draw(apart)
    one, exact = (
        ProbabilityFlow(1e-6, probes)(answering(apart.denoise(path)), path, z0, STREAMS).nats for probes in (1, None)
    )
    torch.testing.assert_close(one, exact, rtol=0, atol=1e-9)


def test_probes_stay_the_same_along_the_flow_and_in_every_run(path, data):
    z0 = draw(data)
    one, two = (ProbabilityFlow(1e-4)(answering(data.denoise(path)), path, z0, STREAMS).nats for _ in range(2))
    assert torch.equal(one, two)
    other = ProbabilityFlow(1e-4)(answering(data.denoise(path)), path, z0, Streams(1, torch.arange(COUNT))).nats
    assert not torch.allclose(one, other)


def test_the_solver_stays_on_the_path(path, data, monkeypatch):
    """dopri5 by itself steps across the end and interpolates back; there is no path there."""
    asked, time = [], path.schedule.time

    def watched(log_snr: Tensor) -> Tensor:
        asked.append(log_snr)
        return time(log_snr)

    monkeypatch.setattr(path.schedule, "time", watched)
    result = EXACT(answering(data.denoise(path)), path, draw(data), STREAMS)
    assert len(asked) == result.evaluations
    alpha, sigma = path.schedule.alpha_sigma(torch.ones((), dtype=torch.float64))
    furthest = torch.sigmoid(-torch.stack(asked).min() / 2)
    assert float(furthest) == pytest.approx(float(sigma / (alpha + sigma)), abs=1e-12)  # reached, and not crossed


def test_a_flow_that_cannot_be_followed_is_said_to_be_so(data):
    path = GaussianPath(LinearFlow())
    with pytest.raises(UserError, match=r"likelihood\.tolerance=1e-06 is not reached"):
        EXACT(answering(lambda z, t: z / torch.zeros_like(z)), path, draw(data), STREAMS)


# --- the variational bound -------------------------------------------------------------------------------------------


def gaps(data: GaussianData, path: GaussianPath, *bounds: VariationalBound, count: int = 1000) -> list[float]:
    """How far bounds lie above the likelihood, on average, in nats per dimension."""
    z0, streams = draw(data, count), Streams(0, torch.arange(count))
    nll = EXACT(answering(data.denoise(path)), path, z0, streams).nats
    return [float((bound(answering(data.denoise(path)), path, z0, streams).nats - nll).mean()) for bound in bounds]


def test_the_bound_falls_towards_the_likelihood(path, data):
    found = gaps(data, path, *(VariationalBound(steps) for steps in (30, 100, 300)))
    print(f"bound above the likelihood in nats per dimension, T = 30, 100, 300: {found}")
    assert found[0] > 2.5 * found[1] > 6 * found[2] > 0
    assert found[2] < 0.35


def test_even_times_bound_too_but_never_tightly(data):
    even = VariationalBound(1000, grid=uniform_grid)
    tight, loose = gaps(data, GaussianPath(LinearFlow()), VariationalBound(1000), even)
    print(f"bound above the likelihood in nats per dimension, T = 1000: {tight}, at even times {loose}")
    assert 0 < tight < 0.1
    # Where the variance of z_0 given z_t is 1 / SNR, a step costs (r - 1) / 2 for log(r) / 2, r the ratio of the SNRs.
    k = torch.arange(2, 1000, dtype=torch.float64)
    ratio = (k / (k - 1)) ** 2
    assert loose == pytest.approx(float((ratio - 1 - ratio.log()).sum() / 2), abs=0.1)


def test_the_bound_of_one_step_is_the_formula(path, data):
    z0 = draw(data)
    noise = STREAMS.normal("bound/1", (3,)).double()
    alpha, sigma = path.schedule.alpha_sigma(torch.ones(1).double())
    z1 = alpha * z0 + sigma * noise
    clean = data.denoise(path)(z1, torch.ones(COUNT).double())
    power = alpha**2 + sigma**2
    prior = torch.distributions.kl_divergence(
        torch.distributions.Normal(alpha * z0, sigma), torch.distributions.Normal(0.0 * z0, power.sqrt())
    )
    decoder = torch.distributions.Normal(clean, sigma / power.sqrt()).log_prob(z0)
    nats = VariationalBound(1)(answering(data.denoise(path)), path, z0, STREAMS).nats
    torch.testing.assert_close(nats, (prior - decoder).mean(1), rtol=1e-9, atol=1e-9)


def test_the_bound_of_a_sample_does_not_depend_on_the_batch_split(path, data):
    z0 = draw(data)

    def nats(rows: slice) -> Tensor:
        return VariationalBound(20)(
            answering(data.denoise(path)), path, z0[rows], Streams(0, torch.arange(COUNT)[rows])
        ).nats

    torch.testing.assert_close(
        nats(slice(COUNT)), torch.cat([nats(slice(0, 5)), nats(slice(5, COUNT))]), rtol=1e-12, atol=1e-12
    )


def test_the_bounds_times_are_even_in_log_snr(schedule):
    times = bound_grid(50, schedule)
    assert times.shape == (51,)
    assert times[0] == 1
    assert times[-1] == 0
    steps = schedule.log_snr(times[1:-1]).diff()
    torch.testing.assert_close(steps, steps[:1].expand_as(steps), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(
    ("make", "word"),
    [
        (lambda: ProbabilityFlow(tolerance=0.0), "tolerance"),
        (lambda: ProbabilityFlow(probes=0), "probes"),
        (lambda: ProbabilityFlow(start=0.0), "start"),
        (lambda: VariationalBound(0), "steps"),
    ],
)
def test_impossible_settings_are_refused(make, word):
    with pytest.raises(UserError, match=f"likelihood.{word}"):
        make()
