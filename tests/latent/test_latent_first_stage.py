"""Autoencoder wiring, the frozen holder and the first-stage losses, with stubs whose arithmetic is known."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from torch import Tensor, nn

from ldm_lightning.errors import UserError
from ldm_lightning.latent.autoencoder import Autoencoder
from ldm_lightning.latent.bottleneck import Bottleneck, Gaussian, VectorQuantizer
from ldm_lightning.latent.frozen import FrozenFirstStage
from ldm_lightning.latent.posterior import GaussianPosterior, PointPosterior
from ldm_lightning.latent.reconstruction import ReconstructionLoss
from ldm_lightning.latent.scale import LatentScale
from ldm_lightning.loss import Term, total
from ldm_lightning.nn.identity_codec import IdentityCodec
from ldm_lightning.rng import Streams

LOG_VAR = 2 * math.log(0.1)


class StubEncoder(nn.Module):
    """Mean: every second pixel of the first channels, times 4 plus 1; variance: 0.1^2."""

    factor = 2

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.channels = (in_channels, out_channels)
        self.gain = nn.Parameter(torch.tensor(4.0))

    def forward(self, x: Tensor) -> Tensor:
        mean = self.gain * x[:, : self.channels[1] // 2, ::2, ::2] + 1
        return torch.cat([mean, torch.full_like(mean, LOG_VAR)], 1)


class StubDecoder(nn.Module):
    """Undoes the stub encoder on pictures that are constant over 2 x 2 pixels."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.channels = (in_channels, out_channels)
        self.gain = nn.Parameter(torch.tensor(4.0))
        self.dropout = nn.Dropout(0.5)

    def forward(self, z: Tensor) -> Tensor:
        x = self.dropout((z - 1) / self.gain)
        return x.repeat_interleave(2, 2).repeat_interleave(2, 3)


@pytest.fixture
def autoencoder() -> Autoencoder:
    return Autoencoder(StubEncoder, StubDecoder, Gaussian(3))


@pytest.fixture
def first_stage(autoencoder) -> FrozenFirstStage:
    return FrozenFirstStage(autoencoder, LatentScale(torch.tensor([1.0, 2.0, 3.0]), torch.tensor([4.0, 2.0, 1.0])))


def pictures(count: int = 2) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    small = torch.rand(count, 3, 3, 5, generator=generator) * 2 - 1
    return small.repeat_interleave(2, 2).repeat_interleave(2, 3)


# --- autoencoder -----------------------------------------------------------------------------------------------------


def test_factories_are_told_their_channels():
    autoencoder = Autoencoder(StubEncoder, StubDecoder, Gaussian(4), in_channels=1)
    assert autoencoder.encoder.channels == (1, 8)
    assert autoencoder.decoder.channels == (4, 1)


def test_the_bottleneck_says_how_many_channels_encoder_and_latents_have():
    autoencoder = Autoencoder(StubEncoder, StubDecoder, Bottleneck(latent_channels=4, encoder_channels=20))
    assert autoencoder.encoder.channels == (3, 20)
    assert autoencoder.decoder.channels == (4, 3)
    assert autoencoder.latent_channels == 4


def test_the_bottleneck_works_in_float32_whatever_the_encoder_does():
    autoencoder = Autoencoder(IdentityCodec, IdentityCodec, VectorQuantizer(3, codes=4))
    with torch.autocast("cpu", torch.bfloat16):
        assert autoencoder.encode(pictures().bfloat16()).mode().dtype == torch.float32


def test_encode_answers_the_encoder_as_a_posterior(autoencoder):
    posterior = autoencoder.encode(pictures())
    torch.testing.assert_close(posterior.mean, 4 * pictures()[:, :, ::2, ::2] + 1)
    torch.testing.assert_close(posterior.log_var, torch.full((2, 3, 3, 5), LOG_VAR))


def test_decode_of_the_mode_is_the_picture(autoencoder):
    autoencoder.eval()
    torch.testing.assert_close(autoencoder.decode(autoencoder.encode(pictures()).mode()), pictures())


def test_decode_is_float32_and_a_picture(autoencoder):
    x = autoencoder.eval().decode(torch.full((1, 3, 1, 1), 41.0, dtype=torch.float64))
    assert x.dtype == torch.float32
    assert x.max() == 1


def test_where_decode_clamps_gradients_lead_back_inside_only(autoencoder):
    """An overshooting pixel that should be brighter is right already; one that should be darker comes back."""
    z = torch.tensor([-50.0, 0.0, 50.0]).view(1, 1, 1, 3).expand(1, 3, 1, 3).clone().requires_grad_()
    for sign, moves in ((1, [False, True, True]), (-1, [True, True, False])):
        (gradient,) = torch.autograd.grad((sign * autoencoder.eval().decode(z)).sum(), z)
        assert (gradient != 0).any(1).flatten().tolist() == moves
        assert (gradient * sign >= 0).all()


def test_gradients_reach_both_networks(autoencoder):
    autoencoder.decode(autoencoder.encode(pictures()).sample(Streams(0, torch.arange(2)))).square().sum().backward()
    assert all(parameter.grad.abs() > 0 for parameter in autoencoder.parameters())


@pytest.mark.parametrize("channels", [0, -1])
def test_no_latent_channels_are_refused(channels):
    with pytest.raises(UserError, match=f"latent_channels={channels}: at least 1 is needed"):
        Gaussian(channels)


# --- frozen holder ---------------------------------------------------------------------------------------------------


class Holder(nn.Module):
    def __init__(self, first_stage: FrozenFirstStage) -> None:
        super().__init__()
        self.first_stage = first_stage
        self.layer = nn.Linear(2, 2)


def test_holder_module_does_not_know_the_first_stage(first_stage):
    holder = Holder(first_stage)
    assert set(dict(holder.named_parameters())) == {"layer.weight", "layer.bias"}
    assert set(holder.state_dict()) == {"layer.weight", "layer.bias"}
    assert list(holder.modules()) == [holder, holder.layer]


def test_copies_share_the_one_first_stage(first_stage):
    holder = Holder(first_stage)
    twin = copy.deepcopy(holder)
    assert twin.first_stage is holder.first_stage
    assert twin.layer is not holder.layer


def test_first_stage_is_frozen_and_stays_so_when_its_holder_trains(first_stage):
    holder = Holder(first_stage).train()
    holder.requires_grad_(True)
    assert not any(module.training for module in first_stage.autoencoder.modules())
    assert not any(parameter.requires_grad for parameter in first_stage.autoencoder.parameters())
    x = pictures().requires_grad_()
    assert not first_stage.decode(first_stage.encode(x)).requires_grad


def test_encode_standardizes_the_mode(first_stage):
    mode = 4 * pictures()[:, :, ::2, ::2] + 1
    mean, std = torch.tensor([1.0, 2.0, 3.0]).view(1, 3, 1, 1), torch.tensor([4.0, 2.0, 1.0]).view(1, 3, 1, 1)
    torch.testing.assert_close(first_stage.encode(pictures()), (mode - mean) / std)


def test_encode_with_streams_standardizes_the_posterior_draw(first_stage):
    streams = Streams(5, torch.tensor([8, 9]))
    draw = first_stage.scale.unstandardize(first_stage.encode(pictures(), streams))
    expected = 4 * pictures()[:, :, ::2, ::2] + 1 + 0.1 * streams.normal("posterior", (3, 3, 5))
    torch.testing.assert_close(draw, expected)


def test_decode_undoes_encode(first_stage):
    torch.testing.assert_close(first_stage.decode(first_stage.encode(pictures())), pictures())


def test_decode_clamps_to_the_range_of_pictures(first_stage):
    x = first_stage.decode(torch.tensor([-50.0, 0.0, 50.0]).view(3, 1, 1, 1).expand(3, 3, 1, 1))
    assert (x.min(), x.max()) == (-1, 1)


def test_latents_may_enter_a_graph(first_stage):
    """No inference tensors: the diffusion model backpropagates through functions of them."""
    weight = torch.ones((), requires_grad=True)
    (weight * first_stage.encode(pictures())).sum().backward()
    assert weight.grad is not None


def test_latent_shape_of_one_picture(first_stage):
    assert first_stage.latent_shape((3, 6, 10)) == (3, 3, 5)


def test_to_moves_weights_and_statistics_and_answers_itself(first_stage):
    assert first_stage.to("meta") is first_stage
    assert {tensor.device.type for tensor in first_stage.autoencoder.parameters()} == {"meta"}
    assert {first_stage.scale.mean.device.type, first_stage.scale.std.device.type} == {"meta"}


# --- losses ----------------------------------------------------------------------------------------------------------


def test_total_is_the_weighted_sum_and_carries_gradients():
    a, b = torch.tensor(2.0, requires_grad=True), torch.tensor(3.0, requires_grad=True)
    loss = total({"a": Term(a, 1.0), "b": Term(b, 0.5)})
    assert loss.item() == 3.5
    loss.backward()
    assert (a.grad.item(), b.grad.item()) == (1, 0.5)


def test_reconstruction_terms_are_the_distance_and_the_mean_kl():
    x, reconstruction = pictures(), pictures() + 0.25
    posterior = GaussianPosterior(torch.ones(2, 3, 3, 5), torch.zeros(2, 3, 3, 5))
    terms = ReconstructionLoss(nn.L1Loss(), kl_weight=0.01)(x, reconstruction, posterior)
    assert {name: (round(term.value.item(), 6), term.weight) for name, term in terms.items()} == {
        "reconstruction": (0.25, 1.0),
        "kl": (0.5, 0.01),
    }
    assert total(terms).item() == pytest.approx(0.255)


def test_a_posterior_brings_terms_of_its_own():
    x = pictures()
    posterior = PointPosterior(x, x, extra={"commitment": Term(torch.tensor(2.0), 0.25)})
    terms = ReconstructionLoss(nn.L1Loss())(x, x, posterior)
    assert list(terms) == ["reconstruction", "kl", "commitment"]
    assert total(terms).item() == 0.5


def test_distance_is_called_with_the_reconstruction_first():
    asked = []
    loss = ReconstructionLoss(lambda *pair: asked.append(pair) or torch.zeros(()))
    x, reconstruction = torch.zeros(1, 1, 1, 1), torch.ones(1, 1, 1, 1)
    loss(x, reconstruction, GaussianPosterior(x, x))
    assert asked[0][0] is reconstruction
    assert asked[0][1] is x


def test_losses_do_not_depend_on_resolution(autoencoder):
    """A picture tiled twice has the same terms: weights keep their meaning."""
    autoencoder.eval()
    values = []
    for x in (pictures(), pictures().repeat(1, 1, 2, 2)):
        posterior = autoencoder.encode(x)
        terms = ReconstructionLoss(nn.MSELoss())(x, autoencoder.decode(posterior.mode() + 0.3), posterior)
        values.append([terms["reconstruction"].value.item(), terms["kl"].value.item()])
    assert values[0] == pytest.approx(values[1], rel=1e-5)
