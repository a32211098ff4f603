"""Likelihood of discrete latents: with the exact denoiser of points, exactly their probability."""

from __future__ import annotations

import math

import pytest
import torch
from scipy import stats
from torch import Tensor

from ldm_lightning.diffusion.denoised import answering
from ldm_lightning.diffusion.dequantization import HALF_CELL, cell_log_mass, cell_noise
from ldm_lightning.diffusion.guidance import Denoise
from ldm_lightning.diffusion.learned_variance import step_nats
from ldm_lightning.diffusion.likelihood import ProbabilityFlow, VariationalBound
from ldm_lightning.diffusion.path import GaussianPath
from ldm_lightning.diffusion.schedule import LinearFlow
from ldm_lightning.rng import Streams
from tests.diffusion.conftest import level

COUNT = 32
STREAMS = Streams(0, torch.arange(COUNT))
EXACT = ProbabilityFlow(1e-6, probes=None)
CUT = -math.log(math.erf(HALF_CELL / math.sqrt(2)))  # nats of the mass outside a cell


def bits_denoiser(path: GaussianPath) -> Denoise:
    """E[z_0 | z_t] of fair bits -1 and 1."""

    def denoise(z: Tensor, t: Tensor) -> Tensor:
        alpha, sigma = path.coefficients(t, z)
        return torch.tanh(alpha * z / sigma**2)

    return answering(denoise)


def points_denoiser(path: GaussianPath, points: Tensor, odds: Tensor) -> Denoise:
    """E[z_0 | z_t] of independent dimensions on ``points`` (K,) with probabilities in proportion to ``odds``."""

    def denoise(z: Tensor, t: Tensor) -> Tensor:
        alpha, sigma = path.coefficients(t, z)
        score = -((z / sigma)[..., None] - (alpha / sigma)[..., None] * points).square() / 2 + odds.log()
        return score.softmax(-1) @ points

    return answering(denoise)


def pick(values: Tensor, *shape: int) -> Tensor:
    return values[torch.randint(len(values), shape)]


PIXELS = (torch.arange(256).double() / 127.5 - 1) / 0.5  # as first_stage=identity standardizes them


def test_fair_bits_cost_log_2_by_the_flow(path):
    z0 = pick(torch.tensor([-1.0, 1.0]).double(), COUNT, 3)
    nats = EXACT(bits_denoiser(path), path, z0, STREAMS, spacing=torch.tensor([2.0])).nats
    torch.testing.assert_close(nats, torch.full_like(nats, math.log(2)), rtol=0, atol=1e-3)
    assert nats.mean().item() == pytest.approx(math.log(2) + CUT, abs=1e-4)  # above, by what is cut off


def test_pixels_of_8_bits_cost_log_256_by_the_flow(path):
    denoise = points_denoiser(path, PIXELS, torch.ones(256).double())
    nats = EXACT(denoise, path, pick(PIXELS, COUNT, 2), STREAMS, spacing=torch.tensor([4 / 255])).nats
    assert nats.mean().item() == pytest.approx(math.log(256), abs=5e-4)


def test_the_bound_comes_down_to_both_from_above(path):
    bits, levels = torch.tensor([-1.0, 1.0]).double(), torch.ones(256).double()
    for points, denoise, spacing in (
        (bits, bits_denoiser(path), 2.0),
        (PIXELS[::17], points_denoiser(path, PIXELS[::17], levels[::17]), 17 * 4 / 255),
    ):
        z0 = pick(points, 512, 4)
        coarse, fine = (
            VariationalBound(steps)(denoise, path, z0, Streams(0, torch.arange(512)), spacing=torch.tensor([spacing]))
            for steps in (20, 200)
        )
        truth = math.log(len(points))
        assert truth - 0.02 < fine.nats.mean() < truth + 0.25
        assert fine.nats.mean() - truth < (coarse.nats.mean() - truth) / 4


def test_without_the_lattice_it_is_no_figure_at_all():
    """What is mended here: a density of points grows without limit the closer one looks."""
    path, z0 = GaussianPath(LinearFlow()), pick(torch.tensor([-1.0, 1.0]).double(), COUNT, 1)
    near, nearer = (
        ProbabilityFlow(1e-6, None, start)(bits_denoiser(path), path, z0, STREAMS).nats.mean() for start in (1e-3, 1e-4)
    )
    assert (near - nearer).item() == pytest.approx(math.log(10), abs=0.01)


def test_channels_with_lattices_of_their_own_and_uneven_odds():
    """Codes of 3 and of 5 levels: nats of each sample are those of its own points."""
    path, count = GaussianPath(LinearFlow()), 64
    points = [torch.tensor([-1.2, 0.0, 1.2]).double(), torch.linspace(-1.4, 1.4, 5).double()]
    odds = [torch.tensor([0.2, 0.3, 0.5]).double(), torch.tensor([0.1, 0.4, 0.2, 0.2, 0.1]).double()]
    numbers = [torch.multinomial(own, count, replacement=True) for own in odds]
    z0 = torch.stack([own[number] for own, number in zip(points, numbers, strict=True)], 1)[:, :, None]
    denoisers = [points_denoiser(path, *pair) for pair in zip(points, odds, strict=True)]

    def denoise(z: Tensor, t: Tensor) -> Tensor:
        return torch.cat([one(z[:, c : c + 1], level(t)).clean for c, one in enumerate(denoisers)], 1)

    nats = EXACT(answering(denoise), path, z0, Streams(0, torch.arange(count)), spacing=torch.tensor([1.2, 0.7])).nats
    truth = -sum(own[number].log() for own, number in zip(odds, numbers, strict=True)) / 2
    torch.testing.assert_close(nats, truth, rtol=0, atol=1e-3)


def test_a_worse_model_costs_more():
    path, z0 = GaussianPath(LinearFlow()), pick(torch.tensor([-1.0, 1.0]).double(), 256, 2)
    for method in (EXACT, VariationalBound(100)):
        right, wrong = (
            method(denoise, path, z0, Streams(0, torch.arange(256)), spacing=torch.tensor([2.0])).nats.mean()
            for denoise in (bits_denoiser(path), answering(lambda z, t: 0.9 * bits_denoiser(path)(z, level(t)).clean))
        )
        assert right + 0.01 < wrong < math.inf


# --- the parts -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("half", [0.5, 4.0, 1000.0])
def test_noise_fills_its_cell_by_its_density(half):
    uniform = Streams(0, torch.arange(20_000)).uniform("cell")
    noise, log_density = cell_noise(uniform, torch.tensor([half]))
    law = stats.truncnorm(-half, half)
    assert noise.abs().max() <= half
    assert stats.kstest(noise.numpy(), law.cdf).pvalue > 1e-3
    torch.testing.assert_close(log_density, torch.from_numpy(law.logpdf(noise.numpy())), rtol=1e-6, atol=1e-6)
    ends = cell_noise(torch.tensor([0.0, 1 - 2.0**-24]), torch.tensor([half]))[0]
    assert ends.isfinite().all()
    torch.testing.assert_close(ends[0], -ends[1])


def test_cells_share_out_all_mass():
    """Of any Gaussian, however narrow, however far."""
    lattice = 0.25 * torch.arange(-400, 401).double()
    for mean, std in ((0.1, 0.01), (3.0, 1.0), (0.0, 7.0), (0.125, 1e-3)):
        mass = cell_log_mass(lattice - mean, torch.tensor(std).double(), torch.tensor(0.25))
        assert mass.exp().sum().item() == pytest.approx(1, abs=1e-9)
        assert mass.isfinite().all()


def test_the_last_step_of_a_learned_variance_decodes_to_cells():
    path, z0 = GaussianPath(LinearFlow()), torch.tensor([[1.0, -1.0]]).double()
    clean, fraction = torch.tensor([[0.9, -1.2]]).double(), torch.tensor([[0.0, 0.7]]).double()
    s, t, before = (torch.tensor([time]).double() for time in (0.0, 0.1, 0.2))
    density = step_nats(path, z0, clean, fraction, (s, t, before))
    wide = step_nats(path, z0, clean, fraction, (s, t, before), cells=torch.tensor([[2.0]]))
    narrow = step_nats(path, z0, clean, fraction, (s, t, before), cells=torch.tensor([[1e-6]]))
    torch.testing.assert_close(narrow, density - math.log(1e-6), rtol=1e-6, atol=1e-6)
    assert 0 <= wide < 1e-6
    later = torch.tensor([0.05]).double()  # any other step has no decoder
    same = [step_nats(path, z0, clean, fraction, (later, t, before), cells=cells) for cells in (None, torch.ones(1, 1))]
    torch.testing.assert_close(*same)
