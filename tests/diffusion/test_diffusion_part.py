"""Sampling from anywhere on the path to anywhere on it."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from ldm_lightning.diffusion.denoised import Denoised, Level, answering
from ldm_lightning.diffusion.path import BernoulliPath, GaussianPath
from ldm_lightning.diffusion.sampler import (
    DDPM,
    EDM,
    RK4,
    WHOLE,
    AdaptiveODE,
    BernoulliAncestral,
    Part,
    flow_grid,
    uniform_grid,
)
from ldm_lightning.diffusion.schedule import LinearFlow, TableSchedule, scaled_linear_betas
from ldm_lightning.errors import UserError
from ldm_lightning.rng import Streams
from tests.diffusion.test_diffusion_bernoulli import TWO
from tests.diffusion.test_diffusion_sampler import DETERMINISTIC, SAMPLERS, STOCHASTIC

PATHS = {"flow": GaussianPath(LinearFlow()), "table": GaussianPath(TableSchedule(scaled_linear_betas()))}
ROWS = 20_000


@pytest.fixture(params=PATHS)
def path(request: pytest.FixtureRequest) -> GaussianPath:
    return PATHS[request.param]


class Numbered:
    """Streams that number the noise of each step by where it lies, so that parts can be compared with the whole."""

    def __init__(self, first: int = 0) -> None:
        self.first, self.streams = first, Streams(0, torch.arange(5))

    def normals(self, purposes: list[str], shape: tuple[int, ...]) -> Tensor:
        steps = [self.first + int(purpose.split("/")[-1]) for purpose in purposes]
        return self.streams.normals([f"sampler/{step}" for step in steps], shape)


@pytest.mark.parametrize("name", ["euler", "heun", "rk4", "ddim", "ddim_half", "ddpm", "ancestral", "edm"])
def test_two_parts_one_after_the_other_are_the_whole(name, path, data):
    """Of methods that remember no earlier step; 0.4 lies on the grid."""
    sampler, denoise = replace(SAMPLERS[name], steps=10, grid=uniform_grid), answering(data.denoise(path))
    z = torch.randn(5, 3, dtype=torch.float64)
    whole = sampler(denoise, path, z, Numbered())
    half = sampler(denoise, path, z, Numbered(), Part(stop=0.4))
    torch.testing.assert_close(sampler(denoise, path, half, Numbered(6), Part(start=0.4)), whole, rtol=1e-9, atol=1e-9)
    assert not torch.allclose(half, whole)
    assert torch.equal(sampler(denoise, path, z, Numbered(), part=Part(stop=0.4)), half)


def test_two_parts_of_an_adaptive_solution_are_the_whole(path, data):
    sampler, denoise = AdaptiveODE(rtol=1e-8, atol=1e-8), answering(data.denoise(path))
    z = torch.randn(5, 3, dtype=torch.float64)
    half = sampler(denoise, path, z, None, Part(stop=0.4))
    whole = sampler(denoise, path, z, None)
    torch.testing.assert_close(sampler(denoise, path, half, None, Part(start=0.4)), whole, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(RK4(100, flow_grid)(denoise, path, z, None, Part(stop=0.4)), half, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", SAMPLERS)
def test_corrupted_data_lead_back_to_the_data(name, path, data):
    """From z_t to z_s the marginal stays that of the path, and to 0 that of the data."""
    sampler, streams = replace(SAMPLERS[name], steps=200), Streams(0, torch.arange(ROWS))
    z0 = data.mean + streams.normal("z0", (3,)).double() @ torch.linalg.cholesky(data.covariance).T
    z = path.corrupt(z0, torch.full((ROWS,), 0.6, dtype=torch.float64), path.noise(streams, (3,)).double())
    for stop in (0.3, 0.0):
        found = sampler(answering(data.denoise(path)), path, z, streams, Part(0.6, stop))
        mean, covariance = data.marginal(path, stop)
        torch.testing.assert_close(found.mean(0), mean, rtol=0, atol=0.05)
        torch.testing.assert_close(found.T.cov(), covariance, rtol=0, atol=0.08)


@pytest.mark.parametrize("name", ["ddim_one", "ddpm", "ancestral", "2m_sde"])
def test_ancestral_samples_from_one_point_have_its_posterior(name, path, data):
    """z_0 given z_t, for Gaussian data: mean and covariance in closed form."""
    sampler, streams, t = replace(SAMPLERS[name], steps=400), Streams(0, torch.arange(ROWS)), 0.4
    z = torch.tensor([0.5, -0.2, 1.0], dtype=torch.float64).expand(ROWS, -1)
    found = sampler(answering(data.denoise(path)), path, z, streams, Part(start=t))
    alpha, sigma = path.schedule.alpha_sigma(torch.tensor(t, dtype=torch.float64))
    mean = data.denoise(path)(z[:1], torch.full((1,), t, dtype=torch.float64))[0]
    covariance = torch.linalg.inv(torch.linalg.inv(data.covariance) + (alpha / sigma) ** 2 * torch.eye(3).double())
    torch.testing.assert_close(found.mean(0), mean, rtol=0, atol=0.03)
    torch.testing.assert_close(found.T.cov(), covariance, rtol=0, atol=0.03)


@pytest.mark.parametrize("name", STOCHASTIC)
def test_parts_that_follow_each_other_draw_independent_noise(name, path):
    drawn: list[str] = []

    class Recorded(Numbered):
        def normals(self, purposes: list[str], shape: tuple[int, ...]) -> Tensor:
            drawn.extend(purposes)
            return super().normals(purposes, shape)

    for part in (Part(stop=0.4), Part(start=0.4)):
        STOCHASTIC[name](answering(lambda z, t: z / 2), path, torch.randn(5, 2000), Recorded(), part)
    assert len(set(drawn)) == len(drawn) > 2


@pytest.mark.parametrize("name", DETERMINISTIC)
def test_a_network_is_asked_only_between_the_ends(name, path):
    asked = []

    def denoise(z: Tensor, level: Level) -> Denoised:
        asked.append(level.value)
        return Denoised(z / 2)

    replace(DETERMINISTIC[name], steps=20)(denoise, path, torch.randn(2, 3), None, Part(0.7, 0.2))
    assert asked[0] == max(asked) == 0.7
    assert min(asked) >= 0.2


def test_bits_go_part_of_the_way():
    path, streams = BernoulliPath(), Streams(0, torch.arange(ROWS))
    sampler, denoise = BernoulliAncestral(50), answering(TWO.denoise(path))
    z = path.corrupt(TWO.draw(ROWS), torch.full((ROWS,), 0.5), path.noise(streams, (2,)))
    middle = sampler(denoise, path, z, streams, Part(0.5, 0.2))
    clean = sampler(denoise, path, middle, streams, Part(start=0.2))
    for found, t in ((middle, 0.2), (clean, 0.0)):
        counts = (found[:, None] == TWO.states).all(2).double().mean(0)
        agree = (1 + path.keep(torch.tensor(t)) * TWO.states[:, None] * TWO.states) / 2
        torch.testing.assert_close(counts, (TWO.p[:, None] * agree.prod(2)).sum(0), rtol=0, atol=0.02)


def test_a_part_is_cut_out_of_the_steps_of_the_whole():
    times = uniform_grid(10, LinearFlow())
    assert Part(0.4, 0.0).of(times).tolist() == pytest.approx([0.4, 0.3, 0.2, 0.1, 0.0])
    assert Part(0.45, 0.25).of(times).tolist() == pytest.approx([0.45, 0.4, 0.3, 0.25])
    assert Part(0.44, 0.43).of(times).tolist() == [0.44, 0.43]
    assert WHOLE.of(times) is times


@pytest.mark.parametrize("ends", [(0.2, 0.4), (0.4, 0.4), (1.1, 0.0), (0.5, -0.1), (math.nan, 0.0)])
def test_ends_the_wrong_way_round_are_refused(ends):
    with pytest.raises(UserError, match="set 0 <= stop < start <= 1"):
        Part(*ends)


def test_churn_may_rise_above_the_start_of_a_part(path, data):
    """As it does in the middle of the whole."""
    asked = []

    def denoise(z: Tensor, level: Level) -> Denoised:
        asked.append(level.value)
        return answering(data.denoise(path))(z, level)

    EDM(20, grid=uniform_grid)(denoise, path, torch.randn(4, 3).double(), Streams(0, torch.arange(4)), Part(start=0.4))
    assert max(asked) > 0.4


def test_one_step_between_close_ends(path, data):
    z = torch.randn(2, 3, dtype=torch.float64)
    out = DDPM(5)(answering(data.denoise(path)), path, z, Streams(0, torch.arange(2)), Part(0.41, 0.4))
    assert out.isfinite().all()
