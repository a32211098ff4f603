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

from ldm_lightning.diffusion.denoiser import Denoiser
from ldm_lightning.diffusion.guidance import ClassifierFree
from ldm_lightning.diffusion.path import GaussianPath
from ldm_lightning.diffusion.prediction import Velocity
from ldm_lightning.diffusion.sampler import DDIM, DDPM, Euler, Heun, Sampler
from ldm_lightning.diffusion.sampler.flow_coordinates import scale_and_clock
from ldm_lightning.diffusion.sampler.grid import flow_grid
from ldm_lightning.diffusion.schedule import LinearFlow, TableSchedule, laplace_betas
from ldm_lightning.rng import Streams

FIRST_ORDER = {"euler": Euler(), "ddim": DDIM(), "ddim_half": DDIM(eta=0.5), "ddim_one": DDIM(eta=1.0), "ddpm": DDPM()}
DETERMINISTIC = {"euler": Euler(), "ddim": DDIM(), "heun": Heun()}


class Basis:
    """Streams whose noise at step k is given: columns k D .. (k + 1) D of one row for every sample."""

    def __init__(self, noise: Tensor) -> None:
        self.noise = noise

    def normal(self, purpose: str, shape: tuple[int, ...]) -> Tensor:
        step, size = int(purpose.removeprefix("sampler/")), shape[0]
        return self.noise[:, step * size : (step + 1) * size]


def affine(sampler: Sampler, path: GaussianPath, data) -> tuple[Tensor, Tensor, Tensor]:
    """(D,) offset, (D, D) matrix of the start and (D, steps D) matrix of the fresh noise."""
    size = len(data.mean)
    rows = torch.eye(size * (1 + sampler.steps), dtype=torch.float64)
    rows = torch.cat([torch.zeros_like(rows[:1]), rows])
    out = sampler(data.denoise(path), path, rows[:, :size], Basis(rows[:, size:]))
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
def test_first_order_samplers_converge_to_the_data_with_slope_one(name, path, grid, data):
    sampler = replace(FIRST_ORDER[name], grid=grid)
    assert error(replace(sampler, steps=200), path, data) < 0.11
    assert order(sampler, path, data, 100) == pytest.approx(1, abs=0.15)


def test_even_times_cost_half_an_order_where_the_signal_starts_like_a_root(data):
    path = GaussianPath(TableSchedule(laplace_betas()))
    assert order(Euler(), path, data, 200) == pytest.approx(0.5, abs=0.1)


def test_heun_converges_with_slope_two_on_the_linear_flow(data):
    path = GaussianPath(LinearFlow())
    assert error(Heun(200), path, data) < 1e-4
    assert order(Heun(), path, data, 100) == pytest.approx(2, abs=0.1)


def test_heun_converges_with_slope_two_on_every_path(path, data):
    sampler = Heun()
    assert error(replace(sampler, steps=200), path, data) < 1e-4
    assert order(sampler, path, data, 100) == pytest.approx(2, abs=0.1)


def test_heun_on_even_times_is_nowhere_worse_than_euler_at_the_same_cost(path, data):
    assert error(Heun(50), path, data) < error(Euler(Heun(50).evaluations), path, data)


@pytest.mark.parametrize("name", DETERMINISTIC)
def test_deterministic_samplers_follow_the_probability_flow(name, path, data):
    """Not the distribution alone: every single start ends where the ODE takes it."""
    sampler = replace(DETERMINISTIC[name], steps=400, grid=flow_grid)
    offset, start, fresh = affine(replace(sampler, steps=100), path, data)
    assert not fresh.any()
    matrix, shift = data.transport(path)
    coarse = (start - matrix).norm() + (offset - shift).norm()
    offset, start, _ = affine(sampler, path, data)
    fine = (start - matrix).norm() + (offset - shift).norm()
    assert math.log(coarse / fine, 4) == pytest.approx(2 if name == "heun" else 1, abs=0.15)
    assert fine < (1e-4 if name == "heun" else 1e-2)


@pytest.mark.parametrize("name", DETERMINISTIC)
def test_paths_differ_in_their_clock_only(name, path, data):
    """The ODE in flow coordinates is the same for every path: equal clocks make equal steps."""
    flow, sampler, steps = GaussianPath(LinearFlow()), DETERMINISTIC[name], 20
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


@pytest.mark.parametrize("name", ["heun", "ddim_half", "ddpm"])
def test_samples_are_distributed_as_the_data_end_to_end(name, path, data):
    """Prior, streams, a velocity network in float32, guidance and sampler together, by drawing."""
    count = 20_000
    optimal, streams = data.denoise(path), Streams(0, torch.arange(count))

    class Network(torch.nn.Module):
        def forward(self, z: Tensor, t: Tensor, condition: dict[str, Tensor], drop: Tensor) -> Tensor:
            alpha, sigma = path.coefficients(t, z)
            clean = optimal(z.double(), t.double()).float()
            return Velocity().target(clean, (z - alpha * clean) / sigma, alpha, sigma)

    sampler = replace({"heun": Heun(), **FIRST_ORDER}[name], steps=30, grid=flow_grid)
    denoise = ClassifierFree()(Denoiser(Network(), path, Velocity()), {})
    samples = sampler(denoise, path, path.prior(streams, (3,)), streams).double()
    offset, start, fresh = affine(sampler, path, data)  # what exact arithmetic makes of the prior
    alpha, sigma = path.schedule.alpha_sigma(torch.ones((), dtype=torch.float64))
    mean, covariance = offset, (alpha**2 + sigma**2) * start @ start.T + fresh @ fresh.T
    deviation = covariance.diagonal().sqrt()
    assert ((samples.mean(0) - mean).abs() < 4 * deviation / math.sqrt(count)).all()
    assert ((samples.T.cov() - covariance).abs() < 6 * torch.outer(deviation, deviation) / math.sqrt(count)).all()
    tolerance = 0.3  # 30 steps: the discretization, and a prior that knows neither mean nor covariance
    assert (samples.mean(0) - data.mean).abs().max() < tolerance
    assert (samples.T.cov() - data.covariance).abs().max() < tolerance
