"""Regularizers of the latent space, with decoders and features that are known."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ldm_lightning.errors import UserError
from ldm_lightning.latent.adversarial import AdaptiveWeight
from ldm_lightning.latent.posterior import GaussianPosterior
from ldm_lightning.latent.reconstruction import ReconstructionLoss
from ldm_lightning.latent.regularization import Alignment, Equivariance, Passage
from ldm_lightning.rng import Streams


def passage(x: Tensor, z: Tensor, decode=lambda z: z, step: int = 0, encoder: Tensor | None = None) -> Passage:
    """Its reconstruction has seven times the pull of the latents' sum at ``encoder``."""
    fidelity = 7 * z.sum()
    layer = torch.zeros(1) if encoder is None else encoder
    return Passage(x, z, decode, Streams(0, torch.zeros(1, dtype=torch.int64), step), fidelity, layer)


# --- equivariance ----------------------------------------------------------------------------------------------------


def test_an_equivariant_decoder_costs_nothing() -> None:
    """Pixel-wise decoders commute with every transformation; a fixed pattern does not."""
    z = torch.randn(2, 3, 8, 8)
    term = Equivariance(nn.L1Loss(), weight=0.3)
    pattern = torch.linspace(0, 1, 8)
    for step in range(8):
        assert term(passage(5 * z, z, lambda z: 5 * z, step)).value < 1e-5

        def fixed(z: Tensor) -> Tensor:
            return z + F.interpolate(pattern.expand(1, 1, 8, 8), z.shape[2:])

        assert term(passage(fixed(z), z, fixed, step)).value > 1e-3 or step_is_identity(step)
    assert term(passage(z, z)).weight == 0.3


def step_is_identity(step: int) -> bool:
    scale, turn = Streams(0, torch.zeros(1, dtype=torch.int64), step).uniform("equivariance", (2,))[0].tolist()
    return scale > 0.9 and turn < 0.25


def test_decoded_sizes_fit_at_any_factor_and_shape() -> None:
    z = torch.randn(1, 2, 3, 5)
    x = torch.randn(1, 1, 12, 20)

    def decode(z: Tensor) -> Tensor:
        return F.interpolate(z[:, :1], scale_factor=4)

    sizes = set()
    for step in range(40):
        asked = []
        Equivariance(nn.L1Loss())(passage(x, z, lambda z, asked=asked: asked.append(z.shape) or decode(z), step))
        sizes.add(tuple(asked[0][2:]))
    assert {(3, 5), (5, 3)} <= sizes  # turned and not
    assert min(map(min, sizes)) == 1  # scaled down to a quarter


def test_the_transformation_is_the_steps() -> None:
    """Whatever the batch, so that ranks and accumulated batches agree; another step sees another."""
    z = torch.randn(4, 2, 8, 8)
    seen = []

    def look(z: Tensor) -> Tensor:
        seen.append(z)
        return z

    for step, part in ((3, z), (3, z[:2]), (4, z)):
        Equivariance(nn.L1Loss())(passage(part, part, look, step))
    torch.testing.assert_close(seen[0][:2], seen[1])
    assert seen[2].shape != seen[0].shape or not torch.equal(seen[2], seen[0])


def test_gradients_reach_latents_and_decoder() -> None:
    z = torch.randn(2, 2, 8, 8, requires_grad=True)
    decoder = nn.Conv2d(2, 1, 3, padding=1)
    Equivariance(nn.L1Loss())(passage(torch.randn(2, 1, 8, 8), z, decoder, 1)).value.backward()
    assert z.grad.abs().sum() > 0
    assert decoder.weight.grad.abs().sum() > 0


@pytest.mark.parametrize("options", [{"least": 0.0}, {"least": 1.5}, {"weight": 0.0}])
def test_impossible_equivariance_is_refused(options: dict[str, float]) -> None:
    with pytest.raises(UserError, match="equivariance"):
        Equivariance(nn.L1Loss(), **options)


# --- alignment -------------------------------------------------------------------------------------------------------


class Features(nn.Module):
    """The first channels of the picture, as they are."""

    dim = 4

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(()))

    def feature_map(self, images: Tensor) -> Tensor:
        return self.weight * images[:, :4]


def identity(alignment: Alignment) -> Alignment:
    with torch.no_grad():
        alignment.projection.weight.copy_(torch.eye(4).view(4, 4, 1, 1))
    return alignment


def test_latents_that_are_the_features_cost_nothing() -> None:
    x = torch.randn(2, 4, 3, 3)
    assert identity(Alignment(Features(), 4, angle=0.0, structure=0.0))(passage(x, 2 * x)).value < 1e-5


def test_opposite_latents_cost_the_angle_alone() -> None:
    """cosine -1: 1 - angle + 1; the similarities between places are untouched."""
    x = torch.randn(2, 4, 3, 3)
    value = identity(Alignment(Features(), 4, angle=0.5, structure=0.0))(passage(x, -x)).value
    assert value.item() == pytest.approx(1.5, abs=1e-5)


def test_both_hinges_by_hand() -> None:
    """Two places: features orthogonal, latents parallel to the first. Similarities 1 against 0 in half of the pairs."""
    x, z = torch.zeros(1, 4, 1, 2), torch.zeros(1, 4, 1, 2)
    x[0, 0, 0, 0] = x[0, 1, 0, 1] = 1
    z[0, 0] = 3
    value = identity(Alignment(Features(), 4, angle=0.2, structure=0.3))(passage(x, z)).value
    assert value.item() == pytest.approx((0 + 0.8) / 2 + (2 * 0.7) / 4, abs=1e-5)


def test_within_the_margins_there_is_no_gradient() -> None:
    x = torch.randn(2, 4, 3, 3)
    z = (x + 0.01).requires_grad_()
    identity(Alignment(Features(), 4, angle=0.5, structure=0.25))(passage(x, z)).value.backward()
    assert z.grad.abs().max() == 0


def test_published_similarities_are_those_of_projected_latents():
    """A projection that makes all latents parallel: similarity 1 everywhere, whatever the latents."""
    x, z = torch.zeros(1, 4, 1, 2), torch.zeros(1, 4, 1, 2)
    x[0, 0, 0, 0] = x[0, 1, 0, 1] = z[0, 0, 0, 0] = z[0, 1, 0, 1] = 1  # features and latents: orthogonal
    for projected, expected in ((False, 0.0), (True, 2 * 0.7 / 4)):
        alignment = Alignment(Features(), 4, angle=1.5, structure=0.3, projected=projected)
        with torch.no_grad():
            alignment.projection.weight.zero_()[0] = 1
        assert alignment(passage(x, z)).value.item() == pytest.approx(expected, abs=1e-5)


def test_a_balanced_alignment_pulls_at_the_encoder_as_the_reconstruction_does():
    x, encoder = torch.randn(2, 4, 3, 3), torch.randn(4, 1, 1, requires_grad=True)
    alignment = Alignment(Features(), 4, 0.1, 0.0, 0.0, projected=True, balance=AdaptiveWeight(cap=1e8, delta=1e-12))
    seen = passage(x, encoder * torch.randn(2, 4, 3, 3), encoder=encoder)
    term = alignment(seen)
    pulls = [torch.autograd.grad(loss, encoder, retain_graph=True)[0].norm() for loss in (seen.fidelity, term.value)]
    assert float(term.weight) * float(pulls[1]) == pytest.approx(0.1 * float(pulls[0]), rel=1e-4)
    assert not term.weight.requires_grad


def test_only_latents_and_projection_learn() -> None:
    alignment = Alignment(Features(), 2, angle=0.0, structure=0.0)
    z = torch.randn(2, 2, 3, 3, requires_grad=True)
    x = torch.randn(2, 4, 6, 6, requires_grad=True)
    alignment(passage(x, z)).value.backward()
    assert z.grad.abs().sum() > 0
    assert alignment.projection.weight.grad.abs().sum() > 0
    assert x.grad is None
    assert set(alignment.state_dict()) == {"projection.weight"}  # the frozen network stays out
    assert alignment.frozen[0].weight.grad is None


@pytest.mark.parametrize("options", [{"angle": 2.0}, {"structure": -0.1}, {"weight": 0.0}])
def test_impossible_alignment_is_refused(options: dict[str, float]) -> None:
    with pytest.raises(UserError, match="alignment"):
        Alignment(Features(), 4, **options)


# --- free bits and the perceptual term -------------------------------------------------------------------------------


def test_free_nats_cost_and_pull_nothing() -> None:
    mean = torch.tensor([0.1, 3.0]).view(2, 1, 1, 1).requires_grad_()  # KL per element 0.005 and 4.5
    posterior = GaussianPosterior(mean, torch.zeros(2, 1, 1, 1))
    x = torch.zeros(2, 1, 2, 2)
    term = ReconstructionLoss(nn.L1Loss(), free_nats=0.5)(x, x, posterior)["kl"]
    assert term.value.item() == pytest.approx((0.5 + 4.5) / 2)
    term.value.backward()
    assert mean.grad.flatten().tolist() == [0.0, 1.5]


def test_the_perceptual_distance_is_a_term_of_its_own() -> None:
    x, y = torch.zeros(2, 1, 2, 2), torch.ones(2, 1, 2, 2)
    posterior = GaussianPosterior(x, x)
    loss = ReconstructionLoss(nn.L1Loss(), perceptual=nn.MSELoss(), perceptual_weight=0.25)
    term = loss(x, 3 * y, posterior)["perceptual"]
    assert (term.value.item(), term.weight) == (9.0, 0.25)
    assert "perceptual" not in ReconstructionLoss(nn.L1Loss())(x, y, posterior)


@pytest.mark.parametrize("options", [{"kl_weight": -1.0}, {"free_nats": -0.1}, {"perceptual_weight": 0.0}])
def test_impossible_weights_are_refused(options: dict[str, float]) -> None:
    with pytest.raises(UserError, match=r"first_stage\.loss"):
        ReconstructionLoss(nn.L1Loss(), **options)
