"""One source for one, two and three axes: what the networks are in each, and how they are related."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from ldm_lightning.errors import UserError
from ldm_lightning.nn import ClassVector, ConvDecoder, ConvEncoder, DeepDecoder, DeepEncoder, DiT, UNet
from ldm_lightning.nn.context import EMPTY, Context
from ldm_lightning.nn.count import parameters
from ldm_lightning.nn.discriminator import PatchDiscriminator
from ldm_lightning.nn.dit import position_embedding
from ldm_lightning.nn.space import fold, unfold

SIDES = {1: (12,), 2: (8, 12), 3: (4, 8, 12)}
spaces = pytest.mark.parametrize("space", SIDES)


def unet(space: int, **widths: int) -> UNet:
    return UNet(3, channels=(8, 16), blocks=1, attention=(False, True), heads=2, space=space, **widths)


CODECS: dict[str, Callable[[int], tuple[nn.Module, nn.Module]]] = {
    "conv": lambda space: (
        ConvEncoder(3, 8, channels=(8, 16), blocks=1, attention=True, stem=2, space=space),
        ConvDecoder(4, 3, channels=(8, 16), blocks=1, attention=True, stem=2, space=space),
    ),
    "deep": lambda space: (
        DeepEncoder(3, 8, channels=(8, 8, 16), blocks=(1, 1, 1), space=space),
        DeepDecoder(4, 3, channels=(8, 8, 16), blocks=(1, 1, 1), space=space),
    ),
}


def test_folding_is_that_of_pictures_and_unfolding_undoes_it_along_every_axis() -> None:
    x = torch.randn(2, 3, 4, 6)
    assert torch.equal(fold(x, 2), F.pixel_unshuffle(x, 2))
    assert torch.equal(unfold(fold(x, 2), 2), x)
    assert fold(torch.arange(6).view(1, 1, 6), 3).tolist() == [[[0, 3], [1, 4], [2, 5]]]
    film = torch.randn(2, 3, 4, 6, 9)
    folded = fold(film, (1, 2, 3))
    assert folded.shape == (2, 18, 4, 3, 3)
    assert torch.equal(folded[:, 1 * 6 + 1 * 3 + 2, 3, 1, 2], film[:, 1, 3, 2 * 1 + 1, 3 * 2 + 2])
    assert torch.equal(unfold(folded, (1, 2, 3)), film)


@spaces
@pytest.mark.parametrize("patch", [1, 2])
def test_transformers_keep_the_shape_and_every_parameter_learns(space: int, patch: int, shaken) -> None:
    network = shaken(DiT(3, patch=patch, width=20, depth=1, heads=2, vector_width=6, out_channels=5, space=space))
    z = torch.randn(2, 3, *SIDES[space])
    context = ClassVector(4, 6)({"class": torch.tensor([1, 2])}, None)
    out = network(z, torch.tensor([0.1, 0.7]), context)
    assert out.shape == (2, 5, *SIDES[space])
    _every_parameter_learns(out, network)


@spaces
def test_unets_keep_odd_shapes_and_every_parameter_learns(space: int, shaken) -> None:
    network = shaken(unet(space, vector_width=6))
    sides = tuple(side + 1 for side in SIDES[space])
    context = ClassVector(4, 6)({"class": torch.tensor([1, 2])}, None)
    out = network(torch.randn(2, 3, *sides), torch.tensor([0.1, 0.7]), context)
    assert out.shape == (2, 3, *sides)
    _every_parameter_learns(out, network)


@spaces
@pytest.mark.parametrize("codec", CODECS)
def test_codecs_divide_every_side_and_every_parameter_learns(codec: str, space: int, shaken) -> None:
    encoder, decoder = map(shaken, CODECS[codec](space))
    assert encoder.factor == decoder.factor == 4
    x = torch.randn(2, 3, *SIDES[space])
    features = encoder(x)
    assert features.shape == (2, 8, *(side // 4 for side in SIDES[space]))
    out = decoder(features[:, :4])
    assert out.shape == x.shape
    _every_parameter_learns(torch.cat([out.flatten(), features.flatten()]), encoder, decoder)


@spaces
@pytest.mark.parametrize("norm", ["group", "spectral", "none"])
def test_discriminators_judge_patches_along_every_axis(norm: str, space: int, shaken) -> None:
    network = PatchDiscriminator(3, width=8, layers=1, norm=norm, space=space)  # type: ignore[arg-type]
    logits, features = network(torch.randn(2, 3, *[8] * space))
    assert logits.shape == (2, 1, *[2] * space)
    assert [feature.shape[1] for feature in features] == [8, 16]
    _every_parameter_learns(logits, network)


def _every_parameter_learns(out: torch.Tensor, *modules: nn.Module) -> None:
    out.square().sum().backward()
    for module in modules:
        for name, parameter in module.named_parameters():
            assert parameter.grad is not None, name
            assert parameter.grad.abs().max() > 0, name


@pytest.mark.parametrize("make", [unet, *(lambda space, codec=codec: codec(space)[1] for codec in CODECS.values())])
def test_parameters_grow_with_the_volume_of_a_kernel(make: Callable[[int], nn.Module]) -> None:
    """Kernels of three positions a side: p(space) = a + b 3^space, but where channels hold folded blocks."""
    modules = [make(space) for space in (1, 2, 3)]
    weights = [
        sum(layer.weight[0, 0].numel() for layer in module.modules() if hasattr(layer, "kernel_size"))
        for module in modules
    ]
    points = sum(1 for layer in modules[0].modules() if getattr(layer, "kernel_size", None) == (1,))
    kernels = sum(1 for layer in modules[0].modules() if getattr(layer, "kernel_size", None) == (3,))
    assert weights == [points + kernels * 3**space for space in (1, 2, 3)]
    if isinstance(modules[0], UNet):
        one, two, three = map(parameters, modules)
        assert three - two == 3 * (two - one)


def test_a_transformer_with_single_positions_has_as_many_parameters_in_every_space() -> None:
    counts = {parameters(DiT(3, width=24, depth=1, heads=2, space=space)) for space in (1, 2, 3)}
    assert len(counts) == 1


@pytest.mark.parametrize("space", [1, 2])
def test_an_axis_of_one_position_may_as_well_not_be_there(space: int, shaken) -> None:
    """Along such an axis a kernel meets nothing but padding beside its centre."""
    more = shaken(unet(space + 1))
    fewer = unet(space).eval()
    centres = {
        name: value if own.shape == value.shape else value[..., value.shape[-1] // 2]
        for (name, value), own in zip(more.state_dict().items(), fewer.state_dict().values(), strict=True)
    }
    fewer.load_state_dict(centres)
    z, t = torch.randn(2, 3, *SIDES[space]), torch.tensor([0.2, 0.9])
    torch.testing.assert_close(more(z[..., None], t, EMPTY)[..., 0], fewer(z, t, EMPTY), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("sides", "channels"), [((7,), 6), ((5, 7), 24), ((2, 5, 7), 16)])
def test_positions_of_every_axis_are_relative_and_its_own(sides: tuple[int, ...], channels: int) -> None:
    embedding = position_embedding(sides, channels).view(*sides, channels)
    share = 2 * (channels // (2 * len(sides)))
    for axis, side in enumerate(sides):
        own = embedding.movedim(axis, 0)[..., axis * share : (axis + 1) * share].reshape(side, -1, share)
        assert torch.equal(own, own[:, :1].expand_as(own))  # whatever the other axes say
        products = own[:, 0] @ own[:, 0].T
        torch.testing.assert_close(products[1:, 1:], products[:-1, :-1])  # a matter of the distance alone
    assert not embedding[..., share * len(sides) :].any()
    assert len(embedding.flatten(0, -2).unique(dim=0)) == len(embedding.flatten(0, -2))


def test_items_of_another_number_of_axes_are_refused() -> None:
    picture, sound = torch.zeros(1, 3, 8, 8), torch.zeros(1, 3, 8)
    encoder, decoder = CODECS["conv"](1)
    for call in (
        lambda: encoder(picture),
        lambda: decoder(picture),
        lambda: CODECS["deep"](1)[0](picture),
        lambda: PatchDiscriminator(3, layers=1, space=1)(picture),
        lambda: unet(1)(picture, torch.zeros(1), Context()),
        lambda: DiT(3, space=1)(picture, torch.zeros(1), Context()),
    ):
        with pytest.raises(UserError, match=r"items with space=1 axes.*\(1, 3, 8, 8\).*set its space=2"):
            call()
    with pytest.raises(UserError, match=r"space=2 axes.*set its space=1"):
        CODECS["conv"](2)[0](sound)


def test_impossible_numbers_of_axes_and_patches_are_refused() -> None:
    with pytest.raises(UserError, match="space=4 is no number of axes"):
        unet(4)
    with pytest.raises(UserError, match=r"patch=\[2, 2\] for space=3"):
        DiT(3, patch=[2, 2], space=3)
    with pytest.raises(UserError, match=r"latents of 4x6x9 cannot be cut into patches of 1x2x2; use patch=1"):
        DiT(3, patch=(1, 2, 2), space=3)(torch.zeros(1, 3, 4, 6, 9), torch.zeros(1), Context())
