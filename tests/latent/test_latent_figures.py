"""Figures of latents against closed forms: white noise, single waves, Parseval, posteriors of known noise."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from ldm_lightning.latent.figures import LatentFigures
from ldm_lightning.latent.posterior import BernoulliPosterior, GaussianPosterior, PointPosterior
from ldm_lightning.latent.spectrum import OCTAVES, Spectrum, octaves


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def measured(posterior: GaussianPosterior | BernoulliPosterior | PointPosterior, x: Tensor) -> dict[str, float]:
    figures = LatentFigures(posterior.mode().shape[1], x.shape[1])
    figures.update(posterior, x)
    return figures.pop()


# --- spectrum --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("space", "expected"),
    [((8,), {2: 3, 4: 2, 8: 2}), ((8, 8), {2: 51, 4: 8, 8: 4}), ((3, 5), {2: 12, 4: 2}), ((1, 1), {})],
)
def test_octaves_hold_the_components_that_can_be_counted_by_hand(space, expected):
    """Of 8 places: +-1, +-2, +-3 and 4 waves, i.e. 8, 4, 2.7 and 2 places long."""
    numbers = octaves(space).flatten()
    assert {OCTAVES[n]: int((numbers == n).sum()) for n in numbers.unique() if n >= 0} == expected
    assert int((numbers < 0).sum()) == 1


def test_an_octave_begins_exactly_at_its_wavelength():
    """(3, 4) of 20 is a wave of exactly 4 places, a square root of rounded numbers."""
    assert OCTAVES[octaves((20, 20))[3, 4]] == 4
    assert OCTAVES[octaves((20, 20))[3, 5]] == 2


@pytest.mark.parametrize("space", [(16,), (8, 8), (12, 7), (4, 6, 5)])
def test_white_noise_has_the_share_of_an_octave_s_components(space):
    spectrum = Spectrum(2)
    for seed in range(20):
        spectrum.update(normal(100, 2, *space, seed=seed) * torch.tensor([1.0, 5.0]).view(1, 2, *[1] * len(space)))
    shares, white = spectrum.compute()
    assert white.sum() == pytest.approx(1)
    for share in shares:
        assert (share - white).abs().max() < 0.01


@pytest.mark.parametrize(("waves", "octave"), [((1, 0), 16), ((0, 2), 8), ((3, 0), 4), ((4, 4), 2), ((8, 8), 2)])
def test_a_wave_lies_wholly_in_its_octave(waves, octave):
    """On 16 x 16 places, whatever its phase and the mean it stands on; (3, 0) is 5.3 places long."""
    down, right = torch.meshgrid(torch.arange(16), torch.arange(16), indexing="ij")
    phases = torch.tensor([0.3, 1.0, 2.0]).view(3, 1, 1, 1)
    wave = torch.cos(2 * math.pi * (waves[0] * down + waves[1] * right) / 16 + phases)
    spectrum = Spectrum(1)
    spectrum.update(100 + wave)
    shares, _ = spectrum.compute()
    assert shares[0, OCTAVES.index(octave)] == pytest.approx(1, abs=1e-6)


def test_powers_add_up_to_the_variance_within_maps():
    maps = 7 + 3 * normal(5, 2, 6, 9)
    spectrum = Spectrum(2)
    spectrum.update(maps)
    assert spectrum.power.sum(1).tolist() == pytest.approx(maps.var((2, 3), correction=0).sum(0).tolist(), rel=1e-5)


# --- figures ---------------------------------------------------------------------------------------------------------


def test_noise_and_activity_of_a_posterior_that_is_known():
    """Channel 0 tells much, channel 1 tells 0.5 % of itself, channel 2 is the prior."""
    mean = normal(200, 3, 8, 8) * torch.tensor([2.0, math.sqrt(0.005), 0.0]).view(1, 3, 1, 1)
    sigma = torch.tensor([0.5, math.sqrt(0.995), 1.0]).view(1, 3, 1, 1).expand_as(mean)
    found = measured(GaussianPosterior(mean, 2 * sigma.log()), normal(200, 1, 32, 32))
    assert [found[f"sigma/{c}"] for c in range(3)] == pytest.approx([0.5, math.sqrt(0.995), 1.0], rel=1e-5)
    assert [found[f"std/{c}"] for c in range(3)] == pytest.approx([math.sqrt(4.25), 1, 1], rel=0.02)
    assert found["noise"] == pytest.approx((0.25 / 4.25 + 0.995 + 1) / 3, rel=0.01)
    assert (found["active"], found["places"]) == (1, 64)


@pytest.mark.parametrize("size", [1e-3, 1.0, 1e3])
def test_activity_knows_no_scale(size):
    mean = normal(50, 2, 4, 4) * size
    found = measured(GaussianPosterior(mean, torch.full_like(mean, 2 * math.log(0.1 * size))), normal(50, 1, 8, 8))
    assert found["active"] == 2


def test_codes_have_no_sigma_and_constant_channels_are_not_active():
    codes = normal(50, 3, 4, 4)
    codes[:, 1] = 0.7
    codes[:, 2] = 0.3 + 1e-7 * codes[:, 2]  # the rounding of a constant
    found = measured(PointPosterior(codes, codes), normal(50, 3, 16, 16))
    assert found["active"] == 1
    assert not any(name.startswith(("sigma", "noise")) for name in found)
    assert found["spectrum/2"] == pytest.approx(11 / 15, abs=0.05)  # of the active one alone, which is white


def test_doubtful_bits_have_noise():
    """Bits of probability 0.5 are coins, those of 0 and 1 by turns are certain."""
    logits = torch.zeros(10, 3, 4, 4)
    logits[:, 1] = 40 * normal(10, 4, 4).sign()
    logits[:, 2] = 1000  # always a one, for sure
    found = measured(BernoulliPosterior(logits), normal(10, 1, 16, 16))
    assert (found["std/0"], found["sigma/0"], found["sigma/1"]) == pytest.approx((0.5, 0.5, 0), abs=1e-6)
    assert found["active"] == 1
    assert found["noise"] == pytest.approx(1 / 3)


def test_pictures_are_compared_at_the_size_of_latents():
    """Blocks of 4x4 equal pixels are, averaged to a quarter of the side, just what the latents are made to be here."""
    z = normal(20, 1, 8, 8).cumsum(3)
    x = z.repeat_interleave(4, 2).repeat_interleave(4, 3)
    found = measured(PointPosterior(z, z), x)
    for octave in (2, 4, 8):
        assert found[f"picture_spectrum/{octave}"] == pytest.approx(found[f"spectrum/{octave}"], rel=1e-5)
    assert "spectrum/16" not in found


@pytest.mark.parametrize("sizes", [(40,), (7, 33), (20, 20)])
def test_batches_do_not_show_and_figures_start_afresh(sizes):
    mean, x = normal(40, 2, 4, 4), normal(40, 1, 8, 8)
    posterior = GaussianPosterior(mean, mean - 2)
    expected, figures = measured(posterior, x), LatentFigures(2, 1)
    for _ in range(2):
        for part, pictures in zip(mean.split(sizes), x.split(sizes), strict=True):
            figures.update(GaussianPosterior(part, part - 2), pictures)
        assert figures.pop() == pytest.approx(expected, rel=1e-6)


def test_nothing_is_active_where_all_is_constant():
    codes = torch.full((4, 2, 4, 4), 0.5)
    found = measured(PointPosterior(codes, codes), normal(4, 1, 8, 8))
    assert found["active"] == 0
    assert not any(name.startswith("spectrum") for name in found)
