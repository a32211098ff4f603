"""Bottlenecks: straight-through gradients against finite differences, codes against enumeration."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch import Tensor

from ldm_lightning.errors import UserError
from ldm_lightning.latent.bottleneck import (
    Bernoulli,
    BinarySpherical,
    Bottleneck,
    FiniteScalar,
    Gaussian,
    GumbelSoftmax,
    Identity,
    VectorQuantizer,
)
from ldm_lightning.latent.posterior import CategoricalPosterior
from ldm_lightning.latent.scale import BitScale
from ldm_lightning.rng import Streams

STATISTICS = {"mean": [0.1] * 4, "std": [0.7] * 4}
ALL = {
    "gaussian": lambda: Gaussian(4),
    "bernoulli": lambda: Bernoulli(4),
    "identity": lambda: Identity(4),
    "vector": lambda: VectorQuantizer(4, 16),
    "gumbel": lambda: GumbelSoftmax(4, 16),
    "finite scalar": lambda: FiniteScalar([8, 5, 5, 5]),
    "binary spherical": lambda: BinarySpherical(4),
}
DETERMINISTIC = ("identity", "vector", "finite scalar", "binary spherical")
CODED = tuple(name for name in ALL if name not in ("gaussian", "identity"))


def features_of(bottleneck: Bottleneck, count: int = 6, size: tuple[int, ...] = (3, 2)) -> Tensor:
    return 2 * torch.randn(count, bottleneck.encoder_channels, *size, generator=torch.Generator().manual_seed(0))


def streams(count: int = 6, seed: int = 0) -> Streams:
    return Streams(seed, torch.arange(count))


def differences(function, at: Tensor, step: float) -> Tensor:
    """Central finite differences of a scalar function."""
    slopes = torch.zeros_like(at)
    for place in range(at.numel()):
        nudge = torch.zeros_like(at)
        nudge.view(-1)[place] = step
        slopes.view(-1)[place] = (function(at + nudge) - function(at - nudge)).item() / (2 * step)
    return slopes


# --- what all have in common ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("size", [(5,), (3, 2), (2, 3, 2)], ids=["sound", "pictures", "video"])
def test_every_family_answers_as_a_posterior(name, size):
    torch.manual_seed(0)
    bottleneck = ALL[name]()
    features = features_of(bottleneck, size=size).requires_grad_()
    posterior = bottleneck(features)
    z = posterior.sample(streams())
    assert z.shape == posterior.mode().shape == (6, 4, *size)
    assert z.dtype == posterior.mode().dtype == torch.float32
    assert posterior.kl().shape == (6,)
    assert (posterior.kl() >= 0).all()
    (slope,) = torch.autograd.grad((z * torch.randn_like(z)).sum(), features)
    assert slope.isfinite().all()
    assert (slope != 0).any()
    first, second = posterior.moments()
    assert first.dtype == second.dtype == torch.float64
    assert (second - first**2 > -1e-9).all()
    numbers = posterior.numbers()
    assert (numbers is not None) == (name in CODED) == bool(bottleneck.codes)
    if numbers is not None:
        assert numbers.shape == (6, bottleneck.groups, *size)
        assert numbers.dtype == torch.int64
        assert 0 <= numbers.min() <= numbers.max() < bottleneck.codes


@pytest.mark.parametrize("name", ALL)
def test_standardized_latents_come_back(name):
    torch.manual_seed(0)
    bottleneck = ALL[name]()
    z, scale = bottleneck(features_of(bottleneck)).mode(), bottleneck.scale(STATISTICS)
    torch.testing.assert_close(scale.unstandardize(scale.standardize(z)), z)


@pytest.mark.parametrize("name", CODED)
def test_what_diffusion_makes_is_put_on_codes(name):
    torch.manual_seed(0)
    bottleneck = ALL[name]()
    z, scale = bottleneck(features_of(bottleneck)).mode(), bottleneck.scale(STATISTICS)
    nearby = scale.standardize(z) + 0.01 * torch.randn_like(z)
    torch.testing.assert_close(scale.unstandardize(nearby), z)


@pytest.mark.parametrize("name", ALL)
def test_a_draw_does_not_depend_on_its_batch(name):
    torch.manual_seed(0)
    bottleneck = ALL[name]()
    features = features_of(bottleneck)
    whole = bottleneck(features).sample(streams())
    part = bottleneck(features[4:]).sample(Streams(0, torch.arange(4, 6)))
    torch.testing.assert_close(whole[4:], part)


@pytest.mark.parametrize("name", DETERMINISTIC)
def test_deterministic_latents_are_their_mode_and_cost_a_choice_among_all_codes(name):
    torch.manual_seed(0)
    bottleneck = ALL[name]()
    posterior = bottleneck(features_of(bottleneck))
    assert torch.equal(posterior.sample(streams()), posterior.mode())
    choices = max(1, bottleneck.codes) ** max(1, bottleneck.groups)
    torch.testing.assert_close(posterior.kl(), torch.full((6,), math.log(choices) / 4))


@pytest.mark.parametrize("name", ["vector", "finite scalar", "binary spherical"])
def test_straight_through_is_the_slope_of_the_relaxed_loss(name):
    """By finite differences of the loss linearized at the codes, as a function of what is rounded (never of codes)."""
    torch.manual_seed(0)
    bottleneck = ALL[name]().double()
    features = features_of(bottleneck, 2, (2,)).double()
    weight = torch.randn(2, 4, 2, dtype=torch.float64)

    def relaxed(at: Tensor) -> Tensor:
        slope = 2 * weight * codes + 1  # of sum w z^2 + z, at the codes
        return (slope * bottleneck(at).features).sum()

    codes = bottleneck(features).mode()
    at = features.clone().requires_grad_()
    z = bottleneck(at).sample(streams(2))
    (slope,) = torch.autograd.grad((weight * z**2 + z).sum(), at)
    torch.testing.assert_close(slope, differences(relaxed, features, 1e-6), atol=1e-7, rtol=1e-6)


@pytest.mark.parametrize(
    ("make", "mend"),
    [
        (lambda: VectorQuantizer(4, 1), "codes=1"),
        (lambda: VectorQuantizer(4, 8, decay=1.0), r"decay=1\.0"),
        (lambda: VectorQuantizer(4, 8, restart_every=0), "restart_every=0"),
        (lambda: GumbelSoftmax(4, 8, start=0.1, end=1.0), r"start=0\.1"),
        (lambda: FiniteScalar([8, 1]), r"levels=\[8, 1\]"),
        (lambda: FiniteScalar([]), r"levels=\[\]"),
        (lambda: FiniteScalar([8] * 9), "2\\^24"),
        (lambda: BinarySpherical(0), "latent_channels=0"),
        (lambda: BinarySpherical(4, inverse_temperature=0), "inverse_temperature=0"),
        (lambda: Identity(4, std=0), "std=0"),
    ],
)
def test_impossible_settings_are_refused(make, mend):
    with pytest.raises(UserError, match=mend):
        make()


# --- finite scalar ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("levels", [[8, 5, 5, 5], [2], [3, 2], [7, 5, 5, 5, 5], [4, 4]])
def test_numbers_and_codes_are_one_to_one(levels):
    quantizer = FiniteScalar(levels)
    numbers = torch.arange(math.prod(levels))[:, None]
    codes = quantizer.code(numbers)
    assert torch.equal(quantizer.number(codes), numbers)
    assert len(codes.unique(dim=0)) == math.prod(levels)
    assert codes.abs().max() <= 1
    assert torch.equal(quantizer.snap(codes), codes)


@pytest.mark.parametrize("levels", [2, 3, 4, 5, 6, 7, 8])
def test_every_level_is_reached_and_no_other(levels):
    z = torch.linspace(-12, 12, 4001)[:, None]
    posterior = FiniteScalar([levels])(z)
    half = levels // 2
    expected = [value / half for value in range(-half, levels - half)]
    assert posterior.mode().unique().tolist() == pytest.approx(expected)


@pytest.mark.parametrize("levels", [3, 4, 5, 8])
def test_the_bound_is_the_published_one(levels):
    """``half_l = (L - 1)(1 - eps) / 2``, ``offset = 0.5`` for even L, ``shift = tan(offset / half_l)``."""
    half_l = (levels - 1) * (1 - 1e-3) / 2
    offset = 0.5 if levels % 2 == 0 else 0.0
    shift = math.tan(offset / half_l)
    for z in (-3.0, -0.4, 0.0, 0.7, 2.0):
        bounded = math.tanh(z + shift) * half_l - offset
        posterior = FiniteScalar([levels])(torch.tensor([[z]]))
        assert posterior.features.item() == pytest.approx(bounded / (levels // 2), abs=1e-6)
        assert posterior.codes.item() == pytest.approx(round(bounded) / (levels // 2), abs=1e-6)


# --- binary spherical ------------------------------------------------------------------------------------------------


def test_codes_lie_on_the_sphere_in_the_orthant_of_the_feature():
    posterior = BinarySpherical(16)(features_of(BinarySpherical(16)))
    torch.testing.assert_close(posterior.codes.norm(dim=1), torch.ones(6, 3, 2))
    torch.testing.assert_close(posterior.features.norm(dim=1), torch.ones(6, 3, 2))
    assert torch.equal(posterior.codes > 0, posterior.features > 0)


@pytest.mark.parametrize("bits", [1, 2, 3])
def test_entropies_are_those_of_all_codes_enumerated(bits):
    torch.manual_seed(0)
    quantizer = BinarySpherical(bits, inverse_temperature=3.0)
    u = torch.nn.functional.normalize(torch.randn(5, bits, 4, dtype=torch.float64), dim=1)
    entropy, diversity = quantizer.entropies(u)
    codes = torch.tensor(list(itertools.product((-1, 1), repeat=bits)), dtype=torch.float64) / math.sqrt(bits)
    q = (3.0 * torch.einsum("kd,bds->bsk", codes, u)).softmax(-1)  # q(c | u) ~ exp(tau c u)
    assert entropy.item() == pytest.approx(torch.special.entr(q).sum(-1).mean().item() / bits)
    mean = q.mean((0, 1))
    ones = [mean[codes[:, bit] > 0].sum() for bit in range(bits)]
    marginal = sum(torch.special.entr(torch.stack([p, 1 - p])).sum() for p in ones).item() / bits
    assert diversity.item() == pytest.approx(marginal)
    joint = torch.special.entr(mean).sum().item() / bits
    assert joint <= marginal + 1e-9  # the upper bound that the paper uses


def test_gradients_of_the_entropy_terms_are_those_of_finite_differences():
    torch.manual_seed(0)
    quantizer = BinarySpherical(3, inverse_temperature=2.0)
    features = torch.randn(2, 3, 2, dtype=torch.float64)

    def loss(at: Tensor) -> Tensor:
        return sum(term.weight * term.value for term in quantizer(at).terms().values())

    at = features.clone().requires_grad_()
    (slope,) = torch.autograd.grad(loss(at), at)
    torch.testing.assert_close(slope, differences(loss, features, 1e-6), atol=1e-8, rtol=1e-5)


def test_terms_are_least_when_codes_are_certain_and_diverse():
    corners = torch.tensor([[1.0, 1], [-1, 1], [1, -1], [-1, -1]])[:, :, None]
    certain = BinarySpherical(2, inverse_temperature=100)
    assert all(term.value.item() < 1e-4 for term in certain(corners).terms().values())
    assert certain(corners[:1]).terms()["diversity"].value.item() == pytest.approx(math.log(2), abs=1e-3)
    unsure = BinarySpherical(2, inverse_temperature=1e-3)
    assert unsure(corners).terms()["entropy"].value.item() == pytest.approx(math.log(2), abs=1e-3)


def test_the_path_of_bits_is_given_exact_signs():
    quantizer = BinarySpherical(12)
    scale = quantizer.scale({})
    assert isinstance(scale, BitScale)
    z = scale.standardize(quantizer(features_of(quantizer)).mode())
    assert set(z.unique().tolist()) == {-1.0, 1.0}
    torch.testing.assert_close(scale.unstandardize(0.3 * z), z / math.sqrt(12))


# --- Gumbel softmax --------------------------------------------------------------------------------------------------


def test_draws_have_the_probabilities_of_the_logits():
    count = 20_000
    probability, book = torch.tensor([0.1, 0.2, 0.7]), torch.tensor([[0.0, 5.0], [1.0, 5.0], [2.0, 6.0]])
    logits = probability.log()[None, :, None].expand(count, 3, 1)
    posterior = CategoricalPosterior(logits, book, torch.tensor(0.5))
    draws = posterior.sample(streams(count))
    for number, p in enumerate(probability.tolist()):
        share = (draws[:, 0, 0] == number).float().mean().item()
        assert abs(share - p) < 4 * math.sqrt(p * (1 - p) / count)
    first, second = posterior.moments()
    torch.testing.assert_close(first[0, :, 0], (probability.double() @ book.double()), atol=1e-6, rtol=0)
    assert abs(second[0, 0, 0].item() - (0.2 + 0.7 * 4)) < 1e-6
    exact = (probability * (3 * probability).log()).sum() / 2
    torch.testing.assert_close(posterior.kl()[0], exact)


def test_gumbel_slopes_are_those_of_the_relaxation():
    torch.manual_seed(0)
    logits, book = torch.randn(2, 5, 1, dtype=torch.float64), torch.randn(5, 3, dtype=torch.float64)
    weight, temperature = torch.randn(2, 3, 1, dtype=torch.float64), torch.tensor(0.7, dtype=torch.float64)
    gumbel = -(-streams(2).uniform("posterior", (5, 1)).clamp(min=2.0**-25).log()).log()

    def relaxed(at: Tensor) -> Tensor:
        return (weight * torch.einsum("bks,kc->bcs", ((at + gumbel) / temperature).softmax(1), book)).sum()

    at = logits.clone().requires_grad_()
    z = CategoricalPosterior(at, book, temperature).sample(streams(2))
    (slope,) = torch.autograd.grad((weight * z).sum(), at)
    torch.testing.assert_close(slope, differences(relaxed, logits, 1e-6), atol=1e-8, rtol=1e-6)
    assert all(row in book.tolist() for row in z.detach()[..., 0].tolist())  # hard, to rounding and beyond


def test_it_cools_down_exponentially_and_the_temperature_is_saved():
    bottleneck = GumbelSoftmax(2, 4, start=1.0, end=0.01, steps=10)
    seen = []
    for step in range(12):
        seen.append(bottleneck(torch.zeros(1, 2, 1)).temperature.item())
        bottleneck.advance(step)
    assert seen[:2] == pytest.approx([1.0, 0.01**0.1])
    assert seen[10:] == pytest.approx([0.01, 0.01])
    assert bottleneck.state_dict()["temperature"].item() == pytest.approx(0.01)
