r"""Samplers against the truth: for Gaussian data the optimal denoiser is known, and every sampler is an affine map.

With :math:`E[z_0 | z_t]` affine in :math:`z_t`, what a sampler makes of its start z and of the fresh noise of its steps
is one affine function, read off exactly by pushing basis vectors through it. Mean and covariance of the samples follow
without drawing any; so do errors down to rounding and the order at which they vanish. Sampling starts from the exact
marginal of z_1, because a table does not end in pure noise.
"""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torch.distributions import MultivariateNormal

from ldm_lightning.diffusion.denoised import answering
from ldm_lightning.diffusion.denoiser import Denoiser
from ldm_lightning.diffusion.guidance import ClassifierFree, Denoise
from ldm_lightning.diffusion.path import GaussianPath
from ldm_lightning.diffusion.prediction import Edm, Epsilon, Prediction, Velocity
from ldm_lightning.diffusion.sampler import (
    DDIM,
    DDPM,
    EDM,
    PLMS,
    RK4,
    AdaptiveODE,
    DPMSolver2M,
    Euler,
    EulerAncestral,
    Heun,
    Sampler,
    UniPC,
    log_snr_grid,
    signal_scale,
)
from ldm_lightning.diffusion.sampler.flow_coordinates import scale_and_clock
from ldm_lightning.diffusion.sampler.grid import flow_grid
from ldm_lightning.diffusion.schedule import LinearFlow, TableSchedule, scaled_linear_betas
from ldm_lightning.rng import Streams
from tests.diffusion.conftest import PREDICTIONS

FIRST_ORDER = {
    "euler": Euler(),
    "ddim": DDIM(),
    "ddim_half": DDIM(eta=0.5),
    "ddim_one": DDIM(eta=1.0),
    "ddpm": DDPM(),
    "ancestral": EulerAncestral(),
}
# The measured order on every path, on even steps of the flow's clock. Methods in log-SNR fall short of two by a factor
# log n there; churn has its full rate from 100 steps on.
ORDERS = {
    "heun": (Heun(), 2.0, 0.1),
    "2m": (DPMSolver2M(), 1.8, 0.1),
    "2m_sde": (DPMSolver2M(eta=1.0), 1.85, 0.1),
    "unipc": (UniPC(), 2.1, 0.1),
    "edm": (EDM(s_churn=10.0), 2.0, 0.2),
    "plms": (PLMS(), 3.0, 0.1),
    "rk4": (RK4(), 4.0, 0.1),
}
SAMPLERS = FIRST_ORDER | {name: sampler for name, (sampler, *_) in ORDERS.items()}
# The order along single trajectories.
DETERMINISTIC = {
    "euler": (Euler(), 1.0),
    "ddim": (DDIM(), 1.0),
    "heun": (Heun(), 2.0),
    "2m": (DPMSolver2M(), 1.8),
    "unipc": (UniPC(), 2.1),
    "plms": (PLMS(), 3.0),
    "rk4": (RK4(), 4.0),
}


class Basis:
    """Streams whose noise at step k is given: columns k D .. (k + 1) D of one row for every sample, then zeros."""

    def __init__(self, noise: Tensor) -> None:
        self.noise = noise

    def normals(self, purposes: list[str], shape: tuple[int, ...]) -> Tensor:
        steps, size = [int(purpose.removeprefix("sampler/")) for purpose in purposes], shape[0]
        given = torch.nn.functional.pad(self.noise, (0, (1 + max(steps)) * size))
        return torch.stack([given[:, step * size : (step + 1) * size] for step in steps])


def affine(sampler: Sampler, path: GaussianPath, data, denoise: Denoise | None = None) -> tuple[Tensor, Tensor, Tensor]:
    """(D,) offset, (D, D) matrix of the start and (D, steps D) matrix of the fresh noise."""
    size = len(data.mean)
    rows = torch.eye(size * (1 + sampler.steps), dtype=torch.float64)
    rows = torch.cat([torch.zeros_like(rows[:1]), rows])
    out = sampler(denoise or answering(data.denoise(path)), path, rows[:, :size], Basis(rows[:, size:]))
    matrix = (out[1:] - out[0]).T
    return out[0], matrix[:, :size], matrix[:, size:]


def moments(sampler: Sampler, path: GaussianPath, data) -> tuple[Tensor, Tensor]:
    """Exact mean and covariance of the samples."""
    offset, start, fresh = affine(sampler, path, data)
    mean, covariance = data.marginal(path, 1.0)
    return start @ mean + offset, start @ covariance @ start.T + fresh @ fresh.T


def error(sampler: Sampler, path: GaussianPath, data) -> float:
    mean, covariance = moments(sampler, path, data)
    return float((mean - data.mean).norm() + (covariance - data.covariance).norm())


def order(sampler: Sampler, path: GaussianPath, data, steps: int) -> float:
    """The measured order of convergence: log2 of what doubling the steps gains."""
    coarse, fine = (error(replace(sampler, steps=n), path, data) for n in (steps, 2 * steps))
    return math.log2(coarse / fine)


# --- the reached distribution ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", FIRST_ORDER)
def test_first_order_samplers_converge_to_the_data_with_slope_one(name, path, data, grid):
    """At even times; but on the flow's clock where those leap over the noise (Laplace) and show half an order."""
    sampler = replace(FIRST_ORDER[name], grid=grid)
    assert error(replace(sampler, steps=200), path, data) < 0.11
    assert order(sampler, path, data, 100) == pytest.approx(1, abs=0.15)


@pytest.mark.parametrize("name", ORDERS)
def test_samplers_of_higher_order_converge_to_the_data(name, path, data):
    sampler, slope, tolerance = ORDERS[name]
    assert error(replace(sampler, steps=200), path, data) < (1e-4 if name in ("heun", "unipc", "plms", "rk4") else 1e-2)
    assert order(sampler, path, data, 100) == pytest.approx(slope, abs=tolerance)


@pytest.mark.parametrize(
    ("sampler", "slope"),
    [(DPMSolver2M(), 2), (DPMSolver2M(eta=1.0), 2), (UniPC(), 3), (Heun(), 2), (Heun(scale=signal_scale), 2)],
    ids=["2m", "2m_sde", "unipc", "heun", "heun_signal"],
)
def test_order_over_a_fixed_range_of_log_snr(sampler, slope, data):
    """Even steps from t = 1 to a last level that does not move: there 2M has its two, UniPC of order two its three.

    The limit of many steps is known: the exact marginal at the last level, denoised once.
    """
    path = GaussianPath(TableSchedule(scaled_linear_betas()))
    last = log_snr_grid(2, path.schedule)[1]
    (mean, covariance), denoise = data.marginal(path, float(last)), data.denoise(path)
    rows = torch.cat([torch.zeros(1, 3), torch.eye(3)]).double()
    offset, *images = denoise(rows, last.expand(4))
    matrix = (torch.stack(images) - offset).T
    limit = matrix @ mean + offset, matrix @ covariance @ matrix.T

    def distance(steps: int) -> float:
        reached = moments(replace(sampler, steps=steps, grid=log_snr_grid), path, data)
        return sum(float((found - exact).norm()) for found, exact in zip(reached, limit, strict=True))

    assert math.log2(distance(80) / distance(160)) == pytest.approx(slope, abs=0.1)


@pytest.mark.parametrize("method", ["dopri5", "dopri8", "bosh3", "adaptive_heun"])
def test_adaptive_solvers_reach_their_tolerance(method, path, data):
    z = MultivariateNormal(*data.marginal(path, 1.0)).sample((32,))
    matrix, shift = data.transport(path)
    errors = []
    for tolerance in (1e-3, 1e-5):
        sampler = AdaptiveODE(steps=1000, method=method, rtol=tolerance, atol=tolerance)
        errors.append(float((sampler(answering(data.denoise(path)), path, z, None) - z @ matrix.T - shift).abs().max()))
    assert errors[1] < 1e-4
    assert errors[1] < errors[0] < 3e-2


def test_heun_on_even_times_is_nowhere_worse_than_euler_at_the_same_cost(path, data):
    assert error(Heun(50), path, data) < error(Euler(Heun(50).evaluations), path, data)


@pytest.mark.parametrize("name", DETERMINISTIC)
def test_deterministic_samplers_follow_the_probability_flow(name, path, data):
    """Not the distribution alone: every single start ends where the ODE takes it."""
    sampler, slope = DETERMINISTIC[name]
    sampler, errors = replace(sampler, grid=flow_grid), []
    matrix, shift = data.transport(path)
    for steps in (75, 300):
        offset, start, fresh = affine(replace(sampler, steps=steps), path, data)
        assert not fresh.any()
        errors.append(float((start - matrix).norm() + (offset - shift).norm()))
    assert math.log(errors[0] / errors[1], 4) == pytest.approx(slope, abs=0.15)
    assert errors[1] < (1e-2 if slope == 1 else 5e-4)


@pytest.mark.parametrize("name", DETERMINISTIC)
def test_paths_differ_in_their_clock_only(name, path, data):
    """The ODE in flow coordinates is the same for every path: equal clocks make equal steps."""
    flow, sampler, steps = GaussianPath(LinearFlow()), DETERMINISTIC[name][0], 20
    times = flow_grid(steps, path.schedule)
    scale, clock = scale_and_clock(path, times, times)
    offset, start, _ = affine(replace(sampler, steps=steps, grid=lambda n, schedule: times), path, data)
    offset_flow, start_flow, _ = affine(replace(sampler, steps=steps, grid=lambda n, schedule: clock), flow, data)
    torch.testing.assert_close(start, start_flow / scale[0], rtol=0, atol=1e-9)
    torch.testing.assert_close(offset, offset_flow, rtol=0, atol=1e-9)


# --- fresh noise -----------------------------------------------------------------------------------------------------


def test_full_noise_ddim_has_the_variance_of_ddpm_at_every_step(path, data):
    (offset, start, fresh), expected = affine(DDIM(20, eta=1.0), path, data), affine(DDPM(20), path, data)
    for answer, other in zip((offset, start, fresh), expected, strict=True):
        torch.testing.assert_close(answer, other, rtol=0, atol=1e-9)
    assert fresh.any()


def test_eta_scales_the_standard_deviation_of_the_fresh_noise(path, data):
    """The last noisy step alone: its fresh noise reaches the end through one denoiser whatever eta is."""
    size = len(data.mean)
    full, half = (affine(DDIM(20, eta=eta), path, data)[2][:, -2 * size : -size] for eta in (1.0, 0.5))
    torch.testing.assert_close(half, full / 2, rtol=1e-9, atol=1e-12)
    assert full.any()


@pytest.mark.parametrize("name", ["heun", "ddim_half", "ddpm", "2m_sde", "edm"])
def test_samples_are_distributed_as_the_data_end_to_end(name, path, data, grid):
    """Prior, streams, a velocity network in float32, guidance and sampler together, by drawing."""
    count = 10_000
    streams = Streams(0, torch.arange(count))
    sampler = replace(SAMPLERS[name], steps=40, grid=grid)
    denoise = ClassifierFree()(Denoiser(Exact(Velocity(), path, data), path, Velocity()), {})
    samples = sampler(denoise, path, path.prior(streams, (3,)), streams).double()
    offset, start, fresh = affine(sampler, path, data)  # what exact arithmetic makes of the prior
    alpha, sigma = path.schedule.alpha_sigma(torch.ones((), dtype=torch.float64))
    mean, covariance = offset, (alpha**2 + sigma**2) * start @ start.T + fresh @ fresh.T
    deviation = covariance.diagonal().sqrt()
    assert ((samples.mean(0) - mean).abs() < 4 * deviation / math.sqrt(count)).all()
    assert ((samples.T.cov() - covariance).abs() < 6 * torch.outer(deviation, deviation) / math.sqrt(count)).all()
    tolerance = 0.35  # 40 steps: the discretization, and a prior that knows neither mean nor covariance
    assert (samples.mean(0) - data.mean).abs().max() < tolerance
    assert (samples.T.cov() - data.covariance).abs().max() < tolerance


# --- predictions -----------------------------------------------------------------------------------------------------


class Exact(torch.nn.Module):
    """A network that answers its target for the optimal clean data, in the precision of its input."""

    def __init__(self, prediction: Prediction, path: GaussianPath, data) -> None:
        super().__init__()
        self.prediction, self.path, self.optimal = prediction, path, data.denoise(path)

    def forward(self, z: Tensor, t: Tensor, condition: dict[str, Tensor], drop: Tensor) -> Tensor:
        if isinstance(self.prediction, Edm):  # it is shown c_in z_t and c_noise = -log_snr / 8
            t = self.path.schedule.time(-8 * t)
            alpha, sigma = self.path.coefficients(t, z)
            z = z * ((self.prediction.sigma_data * alpha) ** 2 + sigma**2).sqrt()
        alpha, sigma = self.path.coefficients(t, z)
        clean = self.optimal(z.double(), t.double()).to(z.dtype)
        return self.prediction.target(clean, (z - alpha * clean) / sigma, alpha, sigma)


@pytest.mark.parametrize("name", SAMPLERS)
def test_mean_and_covariance_do_not_depend_on_the_prediction(name, path, data, grid, signal_left):
    """With the laws above: every sampler reaches both on every path under every prediction, guided or not."""
    sampler = replace(SAMPLERS[name], steps=8, grid=grid)
    expected = affine(sampler, path, data)
    for number, prediction in enumerate(PREDICTIONS):
        if isinstance(prediction, Epsilon | Edm) and not signal_left:
            continue  # refused
        denoiser = Denoiser(Exact(prediction, path, data), path, prediction)
        found = affine(sampler, path, data, ClassifierFree(3.0 if number % 2 else 1.0)(denoiser, {}))
        for part, exact in zip(found, expected, strict=True):
            torch.testing.assert_close(part, exact, rtol=1e-8, atol=1e-8)
