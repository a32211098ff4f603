"""The patch discriminator: which pictures it takes, what a verdict sees, and what normalization promises."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from ldm_lightning.errors import UserError
from ldm_lightning.nn.discriminator import PatchDiscriminator


@pytest.mark.parametrize("channels", [1, 2, 3, 5])
@pytest.mark.parametrize(("size", "verdicts"), [((28, 28), (1, 1)), ((32, 32), (2, 2)), ((64, 40), (6, 3))])
def test_any_channels_and_small_pictures(channels: int, size: tuple[int, int], verdicts: tuple[int, int]) -> None:
    logits, features = PatchDiscriminator(channels, width=8)(torch.randn(2, channels, *size))
    assert logits.shape == (2, 1, *verdicts)
    assert [feature.shape[:2] for feature in features] == [(2, 8), (2, 16), (2, 32), (2, 64)]


@pytest.mark.parametrize(("layers", "smallest"), [(1, 6), (2, 12), (3, 24), (4, 48)])
def test_the_smallest_picture_gives_one_verdict(layers: int, smallest: int) -> None:
    network = PatchDiscriminator(1, width=4, layers=layers)
    assert network(torch.zeros(1, 1, smallest, smallest))[0].shape[2:] == (1, 1)
    with pytest.raises(UserError, match=rf"too small for a discriminator with layers={layers}"):
        network(torch.zeros(1, 1, smallest - 1, smallest))


def test_too_small_a_picture_says_how_many_layers_fit() -> None:
    with pytest.raises(UserError, match=r"16x20 .* layers=3 \(at least 24\): set .*\.layers=2"):
        PatchDiscriminator(1)(torch.zeros(1, 1, 16, 20))


@pytest.mark.parametrize("options", [{"layers": 0}, {"width": 0}])
def test_impossible_sizes_are_refused(options: dict[str, int]) -> None:
    with pytest.raises(UserError, match="must be at least 1"):
        PatchDiscriminator(1, **options)


def test_a_verdict_sees_70_pixels() -> None:
    """Three layers: the receptive field of the paper. Without normalization, whose statistics see everything."""
    network = PatchDiscriminator(1, width=4, norm="spectral").eval()
    x = torch.randn(1, 1, 128, 128, requires_grad=True)
    logits, _ = network(x)
    logits[0, 0, 7, 7].backward()
    rows = x.grad.abs().sum((0, 1, 3)).nonzero().flatten()
    assert rows.max() - rows.min() + 1 == 70


def test_without_normalization_a_verdict_is_about_its_patch_and_starts_at_a_useful_size() -> None:
    torch.manual_seed(0)
    network = PatchDiscriminator(3, width=32, layers=1, norm="none")
    assert not any(isinstance(layer, nn.GroupNorm) for layer in network.net)
    x = torch.randn(4, 3, 64, 64)
    elsewhere = x.clone()
    elsewhere[..., 32:] = 0
    logits, _ = network(x)
    torch.testing.assert_close(network(elsewhere)[0][..., :10], logits[..., :10], rtol=1e-4, atol=1e-6)
    assert 0.2 < logits.std() < 5  # neither vanished nor exploded


def test_another_norm_is_refused() -> None:
    with pytest.raises(UserError, match="norm=batch: set it to group, spectral or none"):
        PatchDiscriminator(1, norm="batch")  # type: ignore[arg-type]


def test_a_verdict_does_not_depend_on_the_batch() -> None:
    network = PatchDiscriminator(3, width=8)
    x = torch.randn(4, 3, 32, 32)
    torch.testing.assert_close(network(x)[0][:1], network(x[:1])[0], rtol=1e-4, atol=1e-6)


def test_spectral_normalization_bounds_every_layer() -> None:
    torch.manual_seed(0)
    network = PatchDiscriminator(1, width=8, norm="spectral")
    with torch.no_grad():
        for convolution in (layer for layer in network.net if isinstance(layer, nn.Conv2d)):
            convolution.parametrizations.weight.original.mul_(50)
        for _ in range(30):  # one power iteration a call
            network(torch.randn(1, 1, 32, 32))
    for convolution in (layer for layer in network.net if isinstance(layer, nn.Conv2d)):
        assert torch.linalg.matrix_norm(convolution.weight.detach().flatten(1), 2) == pytest.approx(1, abs=0.05)
    assert not any(isinstance(layer, nn.GroupNorm) for layer in network.net)


def test_it_learns_to_tell_noise_from_flat() -> None:
    torch.manual_seed(0)
    network = PatchDiscriminator(1, width=8)
    optimizer = torch.optim.Adam(network.parameters(), 1e-3)
    for _ in range(40):
        real, fake = torch.randn(8, 1, 32, 32), torch.randn(8, 1, 1, 1).expand(-1, -1, 32, 32)
        loss = nn.functional.softplus(-network(real)[0]).mean() + nn.functional.softplus(network(fake)[0]).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert (network(torch.randn(8, 1, 32, 32))[0] > 0).all()
    assert (network(torch.zeros(8, 1, 32, 32))[0] < 0).all()
