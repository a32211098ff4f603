from __future__ import annotations

import io

import numpy as np
import pytest
import torch
from PIL import Image

from ldm_lightning.data.philox import generator
from ldm_lightning.data.picture import ImageTransform, open_picture
from ldm_lightning.errors import UserError


def encoded(picture: Image.Image, kind: str = "PNG", **options) -> bytes:
    file = io.BytesIO()
    picture.save(file, kind, **options)
    return file.getvalue()


def grey(values, dtype=np.uint8) -> Image.Image:
    return Image.fromarray(np.array(values, dtype=dtype))


def test_exif_orientation_turns_the_picture_upright():
    picture = Image.new("RGB", (64, 32), "black")
    picture.paste("white", (0, 0, 32, 32))  # the left half is white
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned: rotate by 90 degrees clockwise to view
    upright = open_picture(encoded(picture, "JPEG", exif=exif, quality=100))
    assert upright.size == (32, 64)
    assert upright.getpixel((16, 8)) == (255, 255, 255)
    assert upright.getpixel((16, 56)) == (0, 0, 0)


def test_palette_with_and_without_transparency():
    picture = Image.new("P", (2, 1))
    picture.putpalette([255, 0, 0, 0, 0, 255])
    picture.putpixel((1, 0), 1)
    plain = open_picture(encoded(picture))
    assert [plain.getpixel((x, 0)) for x in (0, 1)] == [(255, 0, 0), (0, 0, 255)]
    clear = open_picture(encoded(picture, transparency=0))
    assert [clear.getpixel((x, 0)) for x in (0, 1)] == [(255, 255, 255), (0, 0, 255)]


@pytest.mark.parametrize(
    ("mode", "color", "expected"),
    [
        ("RGBA", (255, 0, 0, 0), (255, 255, 255)),
        ("RGBA", (0, 0, 0, 51), (204, 204, 204)),
        ("LA", (0, 51), (204, 204, 204)),
        ("LA", (10, 255), (10, 10, 10)),
    ],
)
def test_transparency_is_laid_on_white(mode, color, expected):
    assert open_picture(encoded(Image.new(mode, (1, 1), color))).getpixel((0, 0)) == expected


@pytest.mark.parametrize(("mode", "color"), [("L", 7), ("RGB", (1, 2, 3))])
def test_transparent_colour_of_modes_without_alpha(mode, color):
    assert open_picture(encoded(Image.new(mode, (1, 1), color), transparency=color)).getpixel((0, 0)) == (255,) * 3


def test_one_bit_and_grey_stay_grey():
    for picture, value in ((Image.new("1", (1, 1), 1), 255), (Image.new("L", (1, 1), 77), 77)):
        opened = open_picture(encoded(picture))
        assert (opened.mode, opened.getpixel((0, 0))) == ("L", value)


def test_cmyk_jpeg():
    content = encoded(Image.new("CMYK", (16, 16), (0, 255, 255, 0)), "JPEG", quality=100)
    opened = open_picture(content)
    assert opened.mode == "RGB"
    assert np.abs(np.array(opened.getpixel((8, 8))) - (255, 0, 0)).max() <= 3


def test_first_frame_of_an_animation():
    frames = [Image.new("RGB", (4, 4), color) for color in ("red", "blue")]
    content = encoded(frames[0], "GIF", save_all=True, append_images=frames[1:])
    assert open_picture(content).getpixel((0, 0)) == (255, 0, 0)


def test_path_and_bytes_agree(tmp_path, noise):
    path = tmp_path / "bild.png"
    noise(0).save(path)
    assert open_picture(path).tobytes() == open_picture(path.read_bytes()).tobytes() == noise(0).tobytes()


def test_damaged_pictures_raise(noise):
    whole = encoded(noise(0, (64, 64)), "JPEG")
    for content in (b"", b"no picture", whole[: len(whole) // 2], encoded(noise(0))[:200]):
        with pytest.raises(Exception):  # noqa: B017, PT011  decoders raise anything
            open_picture(content)


def test_values_and_layout():
    picture = Image.fromarray(np.array([[[0, 51, 255], [255, 0, 0]], [[0, 255, 0], [0, 0, 255]]], dtype=np.uint8))
    x = ImageTransform(size=2)(picture)
    assert (x.dtype, x.shape) == (torch.float32, (3, 2, 2))
    assert torch.equal(x[:, 0, 0], torch.tensor([-1.0, 51 / 127.5 - 1, 1.0]))
    assert torch.equal(x[:, 0, 1], torch.tensor([1.0, -1.0, -1.0]))
    assert torch.equal(x[:, 1, 0], torch.tensor([-1.0, 1.0, -1.0]))


def test_channels_are_converted():
    assert torch.equal(ImageTransform(size=1)(Image.new("L", (1, 1), 255)), torch.ones(3, 1, 1))
    luma = ImageTransform(size=1, channels=1)(Image.new("RGB", (1, 1), (255, 0, 0)))
    assert luma.shape == (1, 1, 1)
    assert luma.item() == pytest.approx(76 / 127.5 - 1)


def test_pad_surrounds_with_black():
    x = ImageTransform(size=32, channels=1, pad=2)(Image.new("L", (28, 28), 255))
    inside = torch.full((1, 32, 32), -1.0)
    inside[:, 2:30, 2:30] = 1.0
    assert torch.equal(x, inside)


@pytest.mark.parametrize("size", [(90, 30), (30, 90), (31, 47), (30, 30)])
def test_center_crop_of_the_resized_short_side(size):
    x = ImageTransform(size=10)(Image.new("RGB", size, "white"))
    assert torch.equal(x, torch.ones(3, 10, 10))


def test_center_crop_takes_the_middle():
    picture = grey([[0] * 4 + [100] * 4 + [200] * 4] * 4)
    x = ImageTransform(size=4, channels=1)(picture)
    torch.testing.assert_close(x, torch.full((1, 4, 4), 100 / 127.5 - 1))


def test_resize_is_antialiased():
    checkers = grey((np.indices((64, 64)).sum(0) % 2) * 255)
    x = ImageTransform(size=8, channels=1)(checkers)
    assert x.abs().max() < 0.1  # without a low-pass filter this would be all black or all white


def test_random_crop_visits_every_place_and_flip_is_even():
    ramp = grey(np.tile(np.arange(7), (4, 1)))
    crop, flip = ImageTransform(4, 1, crop="random"), ImageTransform(4, 1, flip=True)
    draws = [generator(0, "augmentation", 0, index) for index in range(400)]
    lefts = [round((crop(ramp, rng)[0, 0, 0].item() + 1) * 127.5) for rng in draws]
    assert set(lefts) == {0, 1, 2, 3}
    assert max(lefts.count(left) for left in range(4)) < 150
    mirrored = [bool(x[0, 0, 0] > x[0, 0, -1]) for x in (flip(ramp, generator(0, "a", 0, i)) for i in range(400))]
    assert 150 < sum(mirrored) < 250


def test_without_a_generator_nothing_is_random():
    ramp = grey(np.tile(np.arange(7), (4, 1)))
    x = ImageTransform(4, 1, crop="random", flip=True)(ramp)
    assert torch.equal(x, ImageTransform(4, 1)(ramp))


def test_flip_and_crop_draws_do_not_disturb_each_other():
    ramp = grey(np.tile(np.arange(9), (4, 1)))
    for index in range(20):
        plain = ImageTransform(4, 1, crop="random")(ramp, generator(0, "a", 0, index))
        both = ImageTransform(4, 1, crop="random", flip=True)(ramp, generator(0, "a", 0, index))
        assert torch.equal(both, plain) or torch.equal(both, plain.flip(-1))


def test_min_size():
    assert ImageTransform(size=64).min_size == 64
    assert ImageTransform(size=32, pad=2).min_size == 28
    assert ImageTransform(size=64, upscale=True).min_size == 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"channels": 4}, "channels=4"),
        ({"crop": "centre"}, "did you mean 'center'"),
        ({"size": 0}, "size=0"),
        ({"pad": -1}, "pad=-1"),
    ],
)
def test_wrong_options(options, message):
    with pytest.raises(UserError, match=message):
        ImageTransform(**{"size": 8, **options})
