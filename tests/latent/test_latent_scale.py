"""Standardization is an identity there and back; statistics equal brute force however the pictures are divided."""

from __future__ import annotations

import math
import pickle

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from ldm_lightning.errors import UserError
from ldm_lightning.latent.bottleneck import (
    Bernoulli,
    BinarySpherical,
    FiniteScalar,
    Gaussian,
    GumbelSoftmax,
    Identity,
    VectorQuantizer,
)
from ldm_lightning.latent.posterior import GaussianPosterior
from ldm_lightning.latent.scale import LatentScale, LatentStatistics

CHANNELS = 3


def random_posterior(count: int, offset: float = 0.0) -> GaussianPosterior:
    """Channels of different centre and width; float32, as an encoder answers."""
    generator = torch.Generator().manual_seed(count)
    centre = torch.tensor([1.0, -2.0, 0.5]).view(1, 3, 1, 1) + offset
    width = torch.tensor([0.5, 3.0, 0.1]).view(1, 3, 1, 1)
    mean = centre + width * torch.randn(count, CHANNELS, 4, 5, generator=generator)
    return GaussianPosterior(mean, torch.randn(count, CHANNELS, 4, 5, generator=generator) - 2)


def rows(posterior: GaussianPosterior, *sizes: int) -> list[GaussianPosterior]:
    parts = zip(posterior.mean.split(sizes), posterior.log_var.split(sizes), strict=True)
    return [GaussianPosterior(mean, log_var) for mean, log_var in parts]


def measure(*posteriors: GaussianPosterior) -> LatentStatistics:
    statistics = LatentStatistics(CHANNELS)
    for posterior in posteriors:
        statistics.update(posterior)
    return statistics


def exact(posterior: GaussianPosterior) -> tuple[list[float], list[float]]:
    """Law of total variance, two passes in float64: no cancellation."""
    mean, variance = posterior.mean.double(), posterior.log_var.double().exp()
    centre = mean.mean((0, 2, 3), keepdim=True)
    spread = ((mean - centre) ** 2 + variance).mean((0, 2, 3))
    return centre.flatten().tolist(), spread.sqrt().tolist()


# --- scale -----------------------------------------------------------------------------------------------------------


@settings(deadline=None)
@given(mean=st.floats(-50, 50), std=st.floats(1e-3, 1e3), value=st.floats(-100, 100))
def test_standardize_and_back_is_the_identity(mean, std, value):
    scale = LatentScale(torch.tensor([mean, -mean]), torch.tensor([std, 2 * std]))
    raw = torch.full((1, 2, 1, 1), value, dtype=torch.float64)
    assert scale.unstandardize(scale.standardize(raw)).flatten().tolist() == pytest.approx([value] * 2, abs=1e-9)
    assert scale.standardize(scale.unstandardize(raw)).flatten().tolist() == pytest.approx([value] * 2, abs=1e-9)


@pytest.mark.parametrize("space", [(), (5,), (4, 4), (2, 4, 4)])
def test_every_channel_has_its_own_scale_in_any_number_of_dimensions(space):
    scale = LatentScale(torch.tensor([1.0, -1.0]), torch.tensor([2.0, 0.5]))
    raw = torch.tensor([5.0, 0.0]).view(1, 2, *[1] * len(space)).expand(3, 2, *space)
    assert torch.equal(scale.standardize(raw), torch.full_like(raw, 2))


def test_standardized_latents_have_zero_mean_and_unit_deviation():
    posterior = random_posterior(200)
    measured = measure(posterior).compute()
    scale = LatentScale(torch.tensor(measured["mean"]), torch.tensor(measured["std"]))
    draws = posterior.mean + (posterior.log_var / 2).exp() * torch.randn(
        posterior.mean.shape, generator=torch.Generator().manual_seed(1)
    )
    z = scale.standardize(draws)
    assert z.mean((0, 2, 3)).abs().max() < 0.05
    assert (z.std((0, 2, 3)) - 1).abs().max() < 0.05


@pytest.mark.parametrize("broken", [0.0, -1.0, math.inf, math.nan])
def test_a_collapsed_channel_is_named_in_one_line(broken):
    with pytest.raises(
        UserError, match=r"latent channels \[1, 2\] carry no information .*lower loss.kl_weight"
    ) as error:
        LatentScale(torch.zeros(4), torch.tensor([1.0, broken, broken, 1.0]))
    assert "\n" not in str(error.value)


def test_scale_is_state_so_that_it_travels_with_the_weights():
    one, other = LatentScale(torch.ones(2), torch.full((2,), 3.0)), LatentScale(torch.zeros(2), torch.ones(2))
    other.load_state_dict(one.state_dict())
    assert torch.equal(other.standardize(torch.ones(1, 2) * 4), torch.ones(1, 2))
    assert not list(one.parameters())


# --- statistics ------------------------------------------------------------------------------------------------------


def test_statistics_equal_brute_force_over_draws():
    posterior, draws = random_posterior(20), 4000
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(draws, *posterior.mean.shape, generator=generator)
    z = (posterior.mean + (posterior.log_var / 2).exp() * noise).transpose(0, 2).flatten(1)
    measured = measure(posterior).compute()
    assert measured["n"] == 20
    assert measured["mean"] == pytest.approx(z.mean(1).tolist(), abs=2e-3)
    assert measured["std"] == pytest.approx(z.std(1).tolist(), rel=2e-3)


@pytest.mark.parametrize("offset", [0.0, 50.0, -5000.0])
def test_statistics_are_exact_however_far_the_mean_is_from_zero(offset):
    posterior = random_posterior(40, offset)
    measured, (mean, std) = measure(posterior).compute(), exact(posterior)
    assert measured["mean"] == pytest.approx(mean, rel=1e-12)
    assert measured["std"] == pytest.approx(std, rel=1e-6)


def test_a_constant_channel_far_from_zero_keeps_the_width_of_its_posterior():
    """Every element N(3000, 0.01^2): the second moment needs more digits than float32 has."""
    mean = torch.full((4, CHANNELS, 8, 8), 3000.0)
    measured = measure(GaussianPosterior(mean, torch.full_like(mean, 2 * math.log(0.01)))).compute()
    assert measured["std"] == pytest.approx([0.01] * CHANNELS, rel=1e-3)


@pytest.mark.parametrize("sizes", [(7, 7, 7, 7, 12), (1, 39), (20, 20)])
def test_statistics_do_not_depend_on_the_batches(sizes):
    posterior = random_posterior(40)
    whole, parts = measure(posterior).compute(), measure(*rows(posterior, *sizes)).compute()
    assert parts["mean"] == pytest.approx(whole["mean"], rel=1e-13)
    assert parts["std"] == pytest.approx(whole["std"], rel=1e-12)
    assert parts["n"] == whole["n"] == 40


def test_unequal_halves_merge_to_the_whole():
    posterior = random_posterior(40)
    left, right = (measure(part) for part in rows(posterior, 13, 27))
    left.merge_state(right)
    whole, merged = measure(posterior).compute(), left.compute()
    assert merged["mean"] == pytest.approx(whole["mean"], rel=1e-13)
    assert merged["std"] == pytest.approx(whole["std"], rel=1e-12)
    assert merged["n"] == 40


def test_all_states_are_summed_over_ranks_in_float64():
    statistics = LatentStatistics(CHANNELS).to("cpu").float()
    assert {reduction.__name__ for reduction in statistics._reductions.values()} == {"dim_zero_sum"}
    assert {getattr(statistics, name).dtype for name in statistics._defaults} == {torch.float64}


def test_reset_forgets_and_pickles():
    statistics = pickle.loads(pickle.dumps(measure(random_posterior(5))))
    statistics.reset()
    statistics.update(random_posterior(40))
    assert statistics.compute() == measure(random_posterior(40)).compute()


def test_answer_is_plain_data():
    measured = measure(random_posterior(2)).compute()
    assert [type(value) for value in (*measured["mean"], *measured["std"], measured["n"])] == [float] * 6 + [int]


# --- the distance of neighbours --------------------------------------------------------------------------------------

MEASURED = {"mean": [0.1, -0.2, 0.0], "std": [0.5, 2.0, 0.7], "sigma": [0.0] * 3, "n": 10}


def neighbours(z: Tensor) -> Tensor:
    """(C,) the least distance of two different values of a channel."""
    return torch.stack([channel.flatten().unique().diff().min() for channel in z.transpose(0, 1)])


@pytest.mark.parametrize(
    "bottleneck", [Bernoulli(3), BinarySpherical(3), FiniteScalar([8, 5, 2])], ids=lambda b: type(b).__name__
)
def test_codes_on_a_lattice_know_its_spacing(bottleneck):
    scale = bottleneck.scale(MEASURED)
    z = scale.standardize(bottleneck(3 * torch.randn(64, 3, 8, 8)).mode())
    torch.testing.assert_close(scale.spacing(z).expand(3), neighbours(z), rtol=1e-5, atol=0)


@pytest.mark.parametrize("bits", [8, 12, 16])
@pytest.mark.parametrize("identity", [Identity(3), Identity(3, std=None)], ids=["set", "measured"])
def test_pixels_are_known_by_their_values(bits, identity):
    most = 2**bits - 1
    scale, pixels = identity.scale(MEASURED), torch.randint(0, most + 1, (64, 3, 16, 16))
    z = scale.standardize(pixels.float() / (most / 2) - 1)
    torch.testing.assert_close(scale.spacing(z), 2 / most / scale.std)
    if bits == 8:  # as a cache of latents keeps them
        half = identity.unpack((pixels.float() / (most / 2) - 1).half()).mode()
        torch.testing.assert_close(scale.spacing(scale.standardize(half)), 2 / most / scale.std)


def test_continuous_latents_have_no_neighbours():
    z = torch.randn(8, 3, 8, 8)
    assert Gaussian(3).scale(MEASURED).spacing(z) is None
    assert Identity(3).scale(MEASURED).spacing(z) is None
    pixels = torch.randint(0, 256, (8, 3, 8, 8)).float() / 127.5 - 1
    pixels[3, 1, 2, 2] += 0.3 / 255  # a single one in between
    assert Identity(3).scale(MEASURED).spacing(2 * pixels) is None


@pytest.mark.parametrize("bottleneck", [VectorQuantizer(3, 4), GumbelSoftmax(3, 4)], ids=lambda b: type(b).__name__)
def test_vectors_of_a_book_lie_on_no_lattice(bottleneck):
    with pytest.raises(UserError, match="codes from a book") as error:
        bottleneck.scale(MEASURED).spacing(torch.randn(2, 3, 4, 4))
    assert "\n" not in str(error.value)
