"""The deep-compression codec: its shortcuts exactly, its shapes, its start as a rearrangement of pixels."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from ldm_lightning.errors import UserError
from ldm_lightning.nn import DeepDecoder, DeepEncoder, IdentityCodec
from ldm_lightning.nn.deep_codec import channel_to_space, space_to_channel


def test_space_to_channel_averages_neighbouring_channels_of_folded_pixels():
    x = torch.arange(32.0).view(1, 2, 4, 4)
    out = space_to_channel(x, 4)
    assert out.shape == (1, 4, 2, 2)
    # Output channel 0 at (0, 0): the mean of the first two pixels of the first 2x2 square of channel 0.
    assert out[0, 0, 0, 0] == (x[0, 0, 0, 0] + x[0, 0, 0, 1]) / 2
    assert out[0, 1, 0, 0] == (x[0, 0, 1, 0] + x[0, 0, 1, 1]) / 2
    assert out[0, 2, 1, 1] == (x[0, 1, 2, 2] + x[0, 1, 2, 3]) / 2


def test_channel_to_space_duplicates_channels_and_unfolds_them():
    z = torch.arange(8.0).view(1, 2, 2, 2)
    out = channel_to_space(z, 1)
    assert out.shape == (1, 1, 4, 4)
    assert out[0, 0, :2, :2].tolist() == [[0, 0], [4, 4]]


@pytest.mark.parametrize("channels", [4, 8, 16])
def test_up_undoes_down_where_nothing_is_averaged_and_keeps_means_elsewhere(channels):
    x = torch.randn(2, 4, 6, 8)
    back = channel_to_space(space_to_channel(x, channels), 4)
    if channels == 16:
        torch.testing.assert_close(back, x)
    torch.testing.assert_close(back.mean((2, 3)) if channels >= 4 else back, x.mean((2, 3)))
    z = torch.randn(2, channels, 3, 4)
    torch.testing.assert_close(space_to_channel(channel_to_space(z, 4), channels), z)


def test_an_untrained_codec_is_its_shortcuts():
    """Everything but the outermost convolutions starts at zero."""
    torch.manual_seed(0)
    encoder = DeepEncoder(3, 16, channels=(8, 16, 32), blocks=(1, 2, 1))
    x = torch.randn(2, 3, 8, 16)
    h = encoder.net[0](x)
    for width in (16, 32):
        h = space_to_channel(h, width)
    torch.testing.assert_close(encoder(x), space_to_channel(h, 16, factor=1))

    decoder = DeepDecoder(16, 3, channels=(8, 16, 32), blocks=(1, 2, 1))
    z = torch.randn(2, 16, 2, 4)
    h = channel_to_space(z, 32, factor=1)
    for width in (16, 8):
        h = channel_to_space(h, width)
    torch.testing.assert_close(decoder(z), decoder.net[-3:](h))


@pytest.mark.parametrize(
    ("channels", "factor"), [((8,), 1), ((4, 8), 2), ((4, 8, 8, 16), 8), ((4, 4, 8, 8, 16, 16), 32)]
)
def test_shapes_and_gradients(channels, factor, shaken):
    blocks = [1] * len(channels)
    encoder = shaken(DeepEncoder(3, 8, channels=channels, blocks=blocks))
    decoder = shaken(DeepDecoder(4, 3, channels=channels, blocks=blocks))
    assert encoder.factor == decoder.factor == factor
    x = torch.randn(2, 3, 2 * factor, 3 * factor)
    features = encoder(x)
    assert features.shape == (2, 8, 2, 3)
    out = decoder(features[:, :4])
    assert out.shape == x.shape
    (out.square().sum() + features.square().sum()).backward()
    for name, parameter in [*encoder.named_parameters(), *decoder.named_parameters()]:
        assert parameter.grad is not None, name
        assert parameter.grad.abs().max() > 0, name


@pytest.mark.parametrize("channels", [(8, 12), (8, 64), (4, 8, 6)])
def test_widths_that_cannot_be_averaged_are_refused(channels):
    for half in (DeepEncoder, DeepDecoder):
        with pytest.raises(UserError, match="averages channels"):
            half(4, 4, channels=channels, blocks=[1] * len(channels))


def test_mistakes_are_named():
    with pytest.raises(UserError, match="one entry a level"):
        DeepEncoder(3, 4, channels=(8, 16), blocks=(1,))
    with pytest.raises(UserError, match=r"30x32.*factor 4"):
        DeepEncoder(3, 4, channels=(4, 4, 8), blocks=(1, 1, 1))(torch.zeros(1, 3, 30, 32))
    with pytest.raises(UserError, match="cannot make 4 channels of 3"):
        IdentityCodec(3, 4)


def test_one_image_can_be_memorized():
    torch.manual_seed(0)
    encoder = DeepEncoder(1, 16, channels=(8, 16, 16), blocks=(1, 1, 1))
    decoder = DeepDecoder(16, 1, channels=(8, 16, 16), blocks=(1, 1, 1))
    codec, x = nn.Sequential(encoder, decoder), torch.randn(1, 1, 8, 8)
    optimizer = torch.optim.Adam(codec.parameters(), 5e-3)
    losses = []
    for _ in range(150):
        loss = (codec(x) - x).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.05 * losses[0]
