"""Samplers on a mixture of two Gaussians: the optimal denoiser is known in closed form and is not linear."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import pytest
import torch
from torch import Tensor

from ldm_lightning.diffusion.denoised import answering
from ldm_lightning.diffusion.path import GaussianPath
from ldm_lightning.diffusion.sampler import (
    DDIM,
    DDPM,
    EDM,
    PLMS,
    RK4,
    AdaptiveODE,
    DPMSolver2M,
    Euler,
    Grid,
    Heun,
    Sampler,
    UniPC,
    uniform_grid,
)
from ldm_lightning.rng import Streams

COUNT = 2000
SAMPLERS = {
    "euler": Euler(150),
    "ddim_half": DDIM(150, eta=0.5),
    "ddpm": DDPM(250),
    "heun": Heun(50),
    "2m": DPMSolver2M(50),
    "2m_sde": DPMSolver2M(100, eta=1.0),
    "unipc": UniPC(50),
    "edm": EDM(100, s_churn=10.0),
    "plms": PLMS(50),
    "rk4": RK4(20),
    "adaptive": AdaptiveODE(),
}
# Smooth trajectories: the order of the Gaussian case is seen again.
ORDERS = {"euler": 1, "heun": 2, "2m": 1.8, "unipc": 2.1, "plms": 3, "rk4": 4}


@dataclass(frozen=True)
class Mixture:
    """z_0 is N(+-centre, width^2 I), the first with probability ``share``."""

    centre: Tensor
    width: float
    share: float

    def draw(self, streams: Streams) -> Tensor:
        sign = torch.where(streams.uniform("component") < self.share, 1.0, -1.0).double()
        return sign[:, None] * self.centre + self.width * streams.normal("data", self.centre.shape).double()

    def denoise(self, path: GaussianPath):
        """Each component's conditional mean, weighted by its probability given z_t."""

        def denoise(z: Tensor, t: Tensor) -> Tensor:
            alpha, sigma = path.coefficients(t, z)
            variance = (alpha * self.width) ** 2 + sigma**2
            logit = 2 * alpha / variance * (z @ self.centre)[:, None] + math.log(self.share / (1 - self.share))
            gain = alpha * self.width**2 / variance
            return gain * z + (1 - alpha * gain) * torch.tanh(logit / 2) * self.centre

        return denoise


@pytest.fixture(scope="module")
def mixture() -> Mixture:
    return Mixture(torch.tensor([0.9, -0.6], dtype=torch.float64), width=0.35, share=0.3)


def start(mixture: Mixture, path: GaussianPath, streams: Streams) -> Tensor:
    """The exact marginal of z_1."""
    alpha, sigma = path.schedule.alpha_sigma(torch.ones((), dtype=torch.float64))
    return alpha * mixture.draw(streams) + sigma * streams.normal("noise", (2,)).double()


def with_grid(sampler: Sampler, grid: Grid) -> Sampler:
    """Where it is even in time by itself and the schedule is not."""
    return replace(sampler, grid=grid) if getattr(sampler, "grid", None) is uniform_grid else sampler


def energy_distance(x: Tensor, y: Tensor) -> float:
    """Szekely & Rizzo's distance between distributions, unbiased: 0 in the mean where they are the same."""
    within = sum(torch.pdist(points).mean() for points in (x, y))
    return float(2 * torch.cdist(x, y).mean() - within)


@pytest.mark.parametrize("name", SAMPLERS)
def test_samples_are_distributed_as_the_mixture(name, path, mixture, grid):
    sampler = with_grid(SAMPLERS[name], grid)
    streams, others = Streams(0, torch.arange(COUNT)), Streams(1, torch.arange(COUNT))
    z = start(mixture, path, streams)
    samples, truth = sampler(answering(mixture.denoise(path)), path, z, streams), mixture.draw(others)
    mean = (2 * mixture.share - 1) * mixture.centre
    covariance = (
        mixture.width**2 * torch.eye(2).double() + torch.outer(mixture.centre, mixture.centre) - torch.outer(mean, mean)
    )
    deviation = covariance.diagonal().sqrt()
    assert ((samples.mean(0) - mean).abs() < 5 * deviation / math.sqrt(COUNT)).all()
    assert ((samples.T.cov() - covariance).abs() < 0.07).all()
    # A third of the distance to a Gaussian of the same moments; equal samples differ by about 0.001 at this count.
    assert energy_distance(samples, truth) < 0.004


def test_energy_distance_tells_the_mixture_from_a_gaussian_of_its_moments(mixture):
    truth = mixture.draw(Streams(1, torch.arange(COUNT)))
    gaussian = truth.mean(0) + torch.randn_like(truth) @ torch.linalg.cholesky(truth.T.cov()).T
    assert energy_distance(gaussian, truth) > 0.012
    assert energy_distance(mixture.draw(Streams(2, torch.arange(COUNT))), truth) < 0.004


@pytest.fixture(scope="module")
def solved(path, mixture) -> tuple[Tensor, Tensor]:
    """Starts, and where the probability flow takes them."""
    z = start(mixture, path, Streams(0, torch.arange(50)))
    return z, RK4(400)(answering(mixture.denoise(path)), path, z, None)


@pytest.mark.parametrize("name", ORDERS)
def test_order_along_bent_trajectories(name, path, mixture, solved, grid):
    (z, exact), denoise, sampler = solved, mixture.denoise(path), with_grid(SAMPLERS[name], grid)
    coarse, fine = (
        float((replace(sampler, steps=n)(answering(denoise), path, z, None) - exact).norm()) for n in (80, 160)
    )
    assert math.log2(coarse / fine) == pytest.approx(ORDERS[name], abs=0.5)
