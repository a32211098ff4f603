"""The two halves of the convolutional first stage."""

from __future__ import annotations

import pytest
import torch

from ldm_lightning.errors import UserError
from ldm_lightning.nn import ConvDecoder, ConvEncoder
from ldm_lightning.nn.count import multiply_adds


@pytest.mark.parametrize("attention", [False, True])
@pytest.mark.parametrize(
    ("channels", "stem", "factor"),
    [((8,), 1, 1), ((8, 12), 1, 2), ((4, 8, 8), 1, 4), ((8, 8), 2, 4), ((8,), 4, 4), ((8, 8, 8), 2, 8), ((8,), 3, 3)],
)
def test_shapes_and_gradients(channels: tuple[int, ...], stem: int, factor: int, attention: bool, shaken) -> None:
    encoder = shaken(ConvEncoder(3, 10, channels=channels, blocks=1, attention=attention, stem=stem))
    decoder = shaken(ConvDecoder(5, 3, channels=channels, blocks=1, attention=attention, stem=stem))
    assert encoder.factor == decoder.factor == factor
    x = torch.randn(2, 3, 2 * factor, 3 * factor)
    features = encoder(x)
    assert features.shape == (2, 10, 2, 3)
    out = decoder(features[:, :5])
    assert out.shape == x.shape
    (out.square().sum() + features.square().sum()).backward()
    for name, parameter in [*encoder.named_parameters(), *decoder.named_parameters()]:
        assert parameter.grad is not None, name
        assert parameter.grad.abs().max() > 0, name


def test_images_do_not_mix(shaken) -> None:
    encoder = shaken(ConvEncoder(1, 4, channels=(4, 8), attention=True))
    decoder = shaken(ConvDecoder(4, 1, channels=(4, 8), attention=True))
    x = torch.randn(3, 1, 8, 8)
    torch.testing.assert_close(encoder(x)[1:2], encoder(x[1:2]), rtol=1e-4, atol=1e-5)
    z = encoder(x)
    torch.testing.assert_close(decoder(z)[1:2], decoder(z[1:2]), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("size", "mend"), [((30, 32), "28x32 or 32x32"), ((28, 33), "28x32 or 28x36"), ((3, 3), "size of 4x4")]
)
def test_indivisible_sizes_name_their_neighbours(size: tuple[int, int], mend: str) -> None:
    encoder = ConvEncoder(1, 4, channels=(4, 4), stem=2)
    with pytest.raises(UserError, match=rf"{size[0]}x{size[1]}.*factor 4.*{mend}"):
        encoder(torch.zeros(1, 1, *size))


def test_a_stem_is_cheaper_at_the_same_factor() -> None:
    x = torch.zeros(1, 1, 32, 32)
    assert multiply_adds(ConvEncoder(1, 4, channels=(32, 64), stem=2), x) < 0.6 * multiply_adds(
        ConvEncoder(1, 4, channels=(32, 32, 64)), x
    )


def test_one_image_can_be_memorized() -> None:
    encoder, decoder = ConvEncoder(1, 4, channels=(8, 16), blocks=1), ConvDecoder(4, 1, channels=(8, 16), blocks=1)
    x = torch.randn(1, 1, 8, 8)
    optimizer = torch.optim.Adam([*encoder.parameters(), *decoder.parameters()], 5e-3)
    losses = []
    for _ in range(150):
        loss = (decoder(encoder(x)) - x).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.05 * losses[0]
