"""Adversarial losses against values worked out by hand."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from ldm_lightning.errors import UserError
from ldm_lightning.latent.adversarial import (
    AdaptiveWeight,
    Game,
    Hinge,
    NonSaturating,
    Relativistic,
    feature_matching,
    gradient_penalty,
    lecam,
)


def test_hinge_by_hand() -> None:
    real, fake = torch.tensor([2.0, 0.5]), torch.tensor([-3.0, 1.0])
    assert Hinge().discriminator(real, fake).item() == pytest.approx(((0 + 0.5) / 2 + (0 + 2) / 2) / 2)
    assert Hinge().generator(real, fake).item() == pytest.approx(1.0)


def test_non_saturating_by_hand() -> None:
    real, fake = torch.tensor([math.log(3)]), torch.tensor([-math.log(4)])  # sigmoids 3/4 and 1/5
    game = NonSaturating()
    assert game.discriminator(real, fake).item() == pytest.approx(-(math.log(3 / 4) + math.log(4 / 5)) / 2)
    assert game.generator(real, fake).item() == pytest.approx(-math.log(1 / 5))


def test_relativistic_by_hand() -> None:
    real, fake = torch.tensor([math.log(6), 0.0]), torch.tensor([math.log(2), 0.0])  # sigmoids of differences 3/4, 1/2
    game = Relativistic()
    assert game.discriminator(real, fake).item() == pytest.approx(-(math.log(3 / 4) + math.log(1 / 2)) / 2)
    assert game.generator(real, fake).item() == pytest.approx(-(math.log(1 / 4) + math.log(1 / 2)) / 2)


def test_a_shift_of_all_logits_is_nothing_to_the_relativistic_game() -> None:
    real, fake = torch.randn(2, 7)
    game = Relativistic()
    for of in (game.discriminator, game.accuracy, game.generator):
        torch.testing.assert_close(of(real + 3, fake + 3), of(real, fake))


def test_accuracy_counts_right_verdicts() -> None:
    real, fake = torch.tensor([-1.0, 2.0, 3.0, 4.0]), torch.tensor([-2.0, 1.0, 3.0, 5.0])
    assert Hinge().accuracy(real, fake) == NonSaturating().accuracy(real, fake) == (3 + 1) / 8
    assert Relativistic().accuracy(real, fake) == (1 + 1 + 0.5 + 0) / 4
    for game in (Hinge(), NonSaturating(), Relativistic()):
        assert game.accuracy(torch.ones(5), -torch.ones(5)) == 1
        assert game.accuracy(-torch.ones(5), torch.ones(5)) == 0


@pytest.mark.parametrize("game", [Hinge(), NonSaturating(), Relativistic()])
def test_players_pull_in_opposite_directions(game: Game) -> None:
    real, fake = torch.zeros(3, requires_grad=True), torch.zeros(3, requires_grad=True)
    of_real, of_fake = torch.autograd.grad(game.discriminator(real, fake), (real, fake))
    (wanted,) = torch.autograd.grad(game.generator(real, fake), fake)
    assert (of_real < 0).all()
    assert (of_fake > 0).all()
    assert (wanted < 0).all()


def test_a_losing_generator_still_learns() -> None:
    real, fake = torch.full((2,), 30.0), torch.full((2,), -30.0, requires_grad=True)
    for game in (Hinge(), NonSaturating(), Relativistic()):
        (gradient,) = torch.autograd.grad(game.generator(real, fake), fake)
        torch.testing.assert_close(gradient, torch.full((2,), -0.5))


def test_matched_features_by_hand() -> None:
    """Pictures and layers count the same, whatever their size and scale; only the reconstruction has a gradient."""
    real = [torch.tensor([[2.0, -2.0], [8.0, 0.0]]), torch.tensor([[100.0], [300.0]])]
    fake = [torch.tensor([[3.0, -2.0], [8.0, 1.0]], requires_grad=True), torch.tensor([[100.0], [150.0]])]
    value = feature_matching(real, fake)
    assert value.item() == pytest.approx(((0.5 / 2 + 0.5 / 4) / 2 + (0 + 150 / 300) / 2) / 2)
    assert feature_matching(real, real) == 0
    value.backward()
    torch.testing.assert_close(fake[0].grad, torch.tensor([[0.0625, 0.0], [0.0, 0.03125]]))


def test_matched_features_of_blank_pictures_stay_finite() -> None:
    assert feature_matching([torch.zeros(2, 3)], [torch.full((2, 3), 0.05)]).item() == pytest.approx(5)


def test_matched_features_are_a_mean_over_pictures_in_float32() -> None:
    real, fake = ([torch.randn(4, 3, 5, 5).bfloat16() * torch.rand(4, 1, 1, 1)] for _ in range(2))
    value = feature_matching(real, fake)
    assert value.dtype == torch.float32
    halves = [feature_matching([real[0][half]], [fake[0][half]]) for half in (slice(2), slice(2, 4))]
    torch.testing.assert_close(torch.stack(halves).mean(), value)


def test_r1_of_a_linear_discriminator_is_half_its_squared_weight() -> None:
    weight = torch.randn(3, 4, 4, dtype=torch.float32, requires_grad=True)
    penalty = gradient_penalty(lambda x: (x * weight).sum((1, 2, 3)), torch.randn(5, 3, 4, 4))
    torch.testing.assert_close(penalty, 0.5 * weight.square().sum())
    penalty.backward()
    torch.testing.assert_close(weight.grad, weight.detach())  # the gradient of the gradient


def test_r1_takes_the_mean_over_patches_and_over_pictures() -> None:
    """Logits a * x^2 a pixel: the gradient of their mean is 2 a x / pixels."""
    x = torch.randn(4, 1, 3, 3)
    expected = 0.5 * (2 * 5 * x / 9).square().sum((1, 2, 3)).mean()
    torch.testing.assert_close(gradient_penalty(lambda x: 5 * x.square(), x), expected)


def test_r1_is_float32_under_autocast() -> None:
    network = nn.Conv2d(1, 1, 3)
    x = torch.randn(2, 1, 8, 8)
    exact = gradient_penalty(network, x)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(gradient_penalty(network, x), exact)


def test_lecam_pulls_to_the_other_sides_mean() -> None:
    real, fake = torch.tensor([1.0, 3.0]), torch.tensor([-1.0])
    assert lecam(real, fake, torch.tensor([2.0, -1.0])).item() == pytest.approx((4 + 16) / 2 + 9)


# --- the adaptive weight ---------------------------------------------------------------------------------------------


def decoder(dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    """Hidden features (B, 3) and the last layer's weight (2, 3)."""
    generator = torch.Generator().manual_seed(0)
    hidden, weight = (torch.randn(shape, generator=generator, dtype=dtype) for shape in ((5, 3), (2, 3)))
    return hidden, weight.requires_grad_()


def test_adaptive_weight_is_the_ratio_of_norms_by_hand() -> None:
    hidden, weight = decoder()
    reconstruction = hidden @ weight.T
    # d/dW of sum(c * (h W^T)) is c^T h, for any constants c.
    a, b = torch.randn(5, 2), torch.randn(5, 2)
    expected = (a.T @ hidden).norm() / ((b.T @ hidden).norm() + 1e-6)
    got = AdaptiveWeight(cap=1e6)((a * reconstruction).sum(), (b * reconstruction).sum(), weight)
    torch.testing.assert_close(got, expected)
    assert not got.requires_grad
    assert weight.grad is None
    balanced = got * (b.T @ hidden)
    torch.testing.assert_close(balanced.norm(), (a.T @ hidden).norm(), rtol=1e-4, atol=0)  # pulls as hard


def test_adaptive_weight_is_capped() -> None:
    hidden, weight = decoder()
    reconstruction = hidden @ weight.T
    loss = reconstruction.square().sum()
    assert AdaptiveWeight(cap=7.0)(loss, 0 * reconstruction.sum(), weight) == 7
    assert AdaptiveWeight(cap=7.0)(0 * loss, loss, weight) == 0


def test_adaptive_weight_stays_float32_under_bf16() -> None:
    hidden, weight = decoder()
    a, b = torch.randn(5, 2), 1e-3 * torch.randn(5, 2)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        reconstruction = nn.functional.linear(hidden, weight)
        assert reconstruction.dtype == torch.bfloat16
        got = AdaptiveWeight(cap=1e6)((a * reconstruction).sum(), (b * reconstruction).sum(), weight)
        (later,) = torch.autograd.grad(reconstruction.float().sum(), weight)  # the graph is still whole
    assert got.dtype == torch.float32
    torch.testing.assert_close(got, (a.T @ hidden).norm() / (b.T @ hidden).norm(), rtol=0.02, atol=0)
    torch.testing.assert_close(later, hidden.sum(0).expand(2, 3), rtol=0.02, atol=0.02)


def test_a_decoder_with_another_last_layer_is_told() -> None:
    hidden, weight = decoder()
    loss = (hidden @ weight.T).sum()
    with pytest.raises(UserError, match=r"register the output layer last, or set first_stage.adversary.balance=null"):
        AdaptiveWeight()(loss, loss, torch.zeros(2, 2, requires_grad=True))


@pytest.mark.parametrize("options", [{"cap": 0.0}, {"delta": -1.0}])
def test_impossible_weights_are_refused(options: dict[str, float]) -> None:
    with pytest.raises(UserError, match="must be above 0"):
        AdaptiveWeight(**options)
