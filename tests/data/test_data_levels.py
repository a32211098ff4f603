"""Pictures of more than 8 bits: their numbers reach the tensor, and a range says what they mean."""

from __future__ import annotations

import io
import json
import struct
import warnings
import zlib

import numpy as np
import pytest
import torch
from PIL import Image

from ldm_lightning.data.datamodule import DataModule
from ldm_lightning.data.folder import ImageFolder
from ldm_lightning.data.levels import Levels
from ldm_lightning.data.philox import generator
from ldm_lightning.data.picture import ImageTransform, open_picture
from ldm_lightning.errors import UserError


def png16(values: np.ndarray) -> bytes:
    """A PNG of 16 bits with 1 to 4 channels, which Pillow cannot write."""
    height, width, channels = values.shape
    kind = {1: 0, 2: 4, 3: 2, 4: 6}[channels]
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = struct.pack(">IIBBBBB", width, height, 16, kind, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        [chunk(b"IHDR", header), chunk(b"IDAT", zlib.compress(rows)), chunk(b"IEND", b"")]
    )


def tiff(values: np.ndarray, order: str = "<", compress: bool = False) -> bytes:
    """A TIFF of any kind of number, (height, width) or (height, width, 3)."""
    height, width = values.shape[:2]
    channels = values.shape[2] if values.ndim == 3 else 1
    data = values.astype(values.dtype.newbyteorder(order)).tobytes()
    data = zlib.compress(data) if compress else data
    kind = {"u": 1, "i": 2, "f": 3}[values.dtype.kind]
    tags = {256: [width], 257: [height], 258: [8 * values.dtype.itemsize] * channels, 259: [8 if compress else 1]}
    tags |= {262: [1 if channels == 1 else 2], 273: [200], 277: [channels], 278: [height], 279: [len(data)]}
    tags[339] = [kind] * channels
    place, entries, far = 8 + 2 + 12 * len(tags) + 4, b"", b""
    for tag, numbers in tags.items():
        width_of = "I" if tag in (273, 279) else "H"
        packed = struct.pack(order + width_of * len(numbers), *numbers)
        entry = struct.pack(order + "HHI", tag, 4 if width_of == "I" else 3, len(numbers))
        if len(packed) > 4:
            entries += entry + struct.pack(order + "I", place + len(far))
            far += packed
        else:
            entries += entry + packed.ljust(4, b"\0")
    head = (b"II" if order == "<" else b"MM") + struct.pack(order + "HIH", 42, 8, len(tags))
    return (head + entries + bytes(4) + far).ljust(200, b"\0") + data


def pillow(values: np.ndarray, kind: str) -> bytes:
    file = io.BytesIO()
    Image.fromarray(values).save(file, kind)
    return file.getvalue()


def numbers(dtype: type, *channels: int) -> np.ndarray:
    """(6, 9) or (6, 9, 3) numbers all over the type."""
    rng = np.random.default_rng(0)
    if np.dtype(dtype).kind == "f":
        return rng.normal(0, 1000, (6, 9, *channels)).astype(dtype)
    limits = np.iinfo(dtype)
    return rng.integers(limits.min, limits.max, (6, 9, *channels), dtype=dtype, endpoint=True)


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize(
    ("dtype", "depth"), [(np.uint16, 16), (np.int16, 32), (np.int32, 32), (np.float32, 32), (np.int8, 32)]
)
def test_grey_keeps_its_numbers(dtype, depth, order):
    values = numbers(dtype)
    levels = open_picture(tiff(values, order))
    assert isinstance(levels, Levels)
    assert (levels.depth, levels.size) == (depth, (9, 6))
    assert np.array_equal(levels.values, values)


def test_unsigned_numbers_of_32_bits_are_not_negative():
    values = numbers(np.uint32)
    assert np.array_equal(open_picture(tiff(values)).values, values)


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "PPM"])
def test_sixteen_bits_as_pillow_writes_them(kind):
    values = numbers(np.uint16)
    levels = open_picture(pillow(values, kind))
    assert levels.depth == 16
    assert np.array_equal(levels.values, values)


def test_colour_keeps_all_sixteen_bits():
    values = numbers(np.uint16, 3)
    for content in (
        png16(values),
        tiff(values),
        tiff(values, ">"),
        tiff(values, compress=True),
        tiff(values, ">", compress=True),
    ):
        levels = open_picture(content)
        assert levels.depth == 16
        assert np.array_equal(levels.values, values)


@pytest.mark.parametrize("colours", [1, 3])
def test_transparent_sixteen_bits_are_laid_on_white(colours):
    values = numbers(np.uint16, colours)
    opacity = np.array([0, 16384, 65535], dtype=np.uint16)[np.arange(9) % 3]
    content = png16(np.concatenate([values, np.tile(opacity, (6, 1))[..., None]], 2))
    share = opacity[None, :, None] / 65535
    expected = np.rint(values * share + 65535 * (1 - share))
    levels = open_picture(content).values
    assert np.array_equal(levels.reshape(expected.shape), expected)


@pytest.mark.parametrize("wrong", [np.nan, np.inf])
def test_numbers_that_are_none_are_damage(wrong, tmp_path):
    good, bad = np.full((8, 8), 0.5, np.float32), np.full((8, 8), wrong, np.float32)
    (tmp_path / "bad.tif").write_bytes(pillow(bad, "TIFF"))
    good[0, 0] = 0
    (tmp_path / "good.tif").write_bytes(pillow(good, "TIFF"))
    source = ImageFolder(str(tmp_path))
    with pytest.warns(UserWarning, match=r"bad\.tif \(it holds NaN or infinity\)"):
        source.prepare()
    assert source.files == ["good.tif"]


def test_sixteen_bits_are_not_cut():
    gradient = np.arange(1024, dtype=np.uint16).reshape(32, 32) * 64
    x = ImageTransform(32, 1)(open_picture(pillow(gradient, "PNG")))
    assert len(x.unique()) == 1024
    expected = torch.from_numpy(gradient / 65535 * 2 - 1)[None]
    torch.testing.assert_close(x.double(), expected, atol=1e-6, rtol=0)


@pytest.mark.parametrize(
    ("values", "limits"),
    [
        (np.arange(1024).reshape(32, 32).astype(np.uint16) * 4, [0, 4095]),
        (np.arange(1024).reshape(32, 32).astype(np.int16) * 4 - 1024, [-1000, 2000]),
        (np.arange(1024).reshape(32, 32).astype(np.int32) + 2_000_000_000, [2_000_000_000, 2_000_001_023]),
        (np.linspace(-0.5, 1.5, 1024).reshape(32, 32).astype(np.float32), [0, 1]),
        (np.arange(1024).reshape(32, 32).astype(np.uint8), [20, 99.5]),
    ],
)
def test_range_is_linear_and_clipped(values, limits):
    low, high = limits
    for channels in (1, 3):
        x = ImageTransform(32, channels, range=limits)(open_picture(tiff(values)))
        expected = (values.astype(np.float64).clip(low, high) - low) / (high - low) * 2 - 1
        torch.testing.assert_close(x.double(), torch.from_numpy(expected).expand(channels, 32, 32), atol=1e-6, rtol=0)


def test_colours_share_a_range_and_mix_to_grey():
    values = numbers(np.uint16, 3)[:, :6] // 16
    picture = open_picture(png16(values))
    x = ImageTransform(6, 3, range=[0, 4095])(picture)
    torch.testing.assert_close(x, torch.from_numpy(values / 4095 * 2 - 1).permute(2, 0, 1).float())
    grey = ImageTransform(6, 1, range=[0, 4095])(picture)
    luma = torch.tensor([0.299, 0.587, 0.114])
    torch.testing.assert_close(grey[0], torch.einsum("chw,c->hw", x, luma))


def test_percentile_is_of_each_picture_over_its_channels():
    values = numbers(np.uint16, 3)[:, :6]
    low, high = np.percentile(values, [10, 80])
    x = ImageTransform(6, 3, percentile=[10, 80])(open_picture(png16(values)))
    expected = ((values - low) / (high - low)).clip(0, 1) * 2 - 1
    torch.testing.assert_close(x.double(), torch.from_numpy(expected).permute(2, 0, 1), atol=1e-6, rtol=0)
    flat = ImageTransform(8, 1, percentile=[1, 99])(open_picture(pillow(np.full((8, 8), 3e38, np.float32), "TIFF")))
    assert torch.equal(flat, torch.full((1, 8, 8), -1.0))


def test_crop_flip_and_resize_as_of_8_bits(noise):
    options = {"size": 8, "crop": "random", "flip": True, "pad": 1}
    small = noise(0, (20, 13)).point(lambda level: level // 2 + 64)  # 8 bits would clip the overshoot of each pass
    wide = open_picture(png16(np.asarray(small).astype(np.uint16) * 257))
    for index in range(20):
        x = ImageTransform(**options)(small, generator(0, "a", 0, index))
        y = ImageTransform(**options)(wide, generator(0, "a", 0, index))
        assert (x - y).abs().max() < 2 / 127.5  # the one is rounded twice, to whole numbers
        assert (y.min(), y.max()) >= (-1, -1)
        assert y.max() <= 1


def test_resize_is_no_coarser_than_the_numbers():
    ramp = np.tile(np.arange(64, dtype=np.uint16), (64, 1)) + 1000
    x = ImageTransform(16, 1, range=[1000, 1063])(open_picture(pillow(ramp, "TIFF")))
    inner = x[0, 8, 4:12].diff()
    torch.testing.assert_close(inner, torch.full((7,), 4 / 63 * 2), atol=1e-5, rtol=0)


def test_unset_range_leaves_no_trace():
    assert repr(ImageTransform(8)) == (
        "ImageTransform(size=8, channels=3, crop='center', flip=False, upscale=False, pad=0)"
    )
    assert repr(ImageTransform(8, range=[0, 9])) == repr(ImageTransform(8, range=(0.0, 9.0))) != repr(ImageTransform(8))
    assert "percentile=(1.0, 99.0)" in repr(ImageTransform(8, percentile=[1, 99]))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"range": [5, 5]}, "below the second"),
        ({"range": [0, float("nan")]}, "below the second"),
        ({"range": 4095}, "no pair of numbers"),
        ({"range": [4095]}, "no pair of numbers"),
        ({"range": "ab"}, "no pair of numbers"),
        ({"range": ["a", "b"]}, "no pair of numbers"),
        ({"percentile": [-1, 99]}, "within 0 and 100"),
        ({"percentile": [1, 101]}, "within 0 and 100"),
        ({"range": [0, 1], "percentile": [1, 99]}, "set one of them"),
    ],
)
def test_wrong_ranges(options, message):
    with pytest.raises(UserError, match=message):
        ImageTransform(8, **options)


def folder(root, dtype: type, low: float, high: float, count: int = 20):
    """Grey pictures of 16 x 16 whose numbers spread over a range."""
    root.mkdir(exist_ok=True)
    for i in range(count):
        values = np.linspace(low, high, 256).round(0 if np.dtype(dtype).kind != "f" else 9).astype(dtype)
        (root / f"{i:02}.tif").write_bytes(tiff(np.roll(values, i).reshape(16, 16)))
    return root


def prepared(root, **options) -> DataModule:
    data = DataModule(ImageFolder(str(root)), ImageTransform(16, 1, **options), 4, validation=0.2)
    data.setup()
    return data


@pytest.mark.parametrize(
    ("dtype", "low", "high", "mend"),
    [
        (np.int32, 0, 255, r"\[0,255\]"),
        (np.int16, -1024, 3071, r"\[-1024,3071\]"),
        (np.float32, 0, 1, r"\[0,1\]"),
        (np.float32, -1.5, 1.5, r"\[-2,2\]"),
    ],
)
def test_numbers_of_no_agreed_range_are_refused_with_one(dtype, low, high, mend, tmp_path):
    root = folder(tmp_path / "p", dtype, low, high)
    with pytest.raises(UserError, match=rf"20 of 20 .* {low:g} \.\.\. {high:g}.*set data\.range={mend}"):
        prepared(root)
    prepared(root, percentile=[1, 99])
    x = prepared(root, range=[low, high]).pictures("train").x
    torch.testing.assert_close((x.amin(), x.amax()), (torch.tensor(-1.0), torch.tensor(1.0)))


def test_flat_pictures_are_named_at_every_start(tmp_path, monkeypatch):
    root = folder(tmp_path / "p", np.uint16, 0, 4095)
    for _ in range(2):
        with pytest.warns(
            UserWarning, match=r"20 of 20 .* 00\.tif \(0 \.\.\. 4095\).*, \.\.\.; set data\.range=\[0,4095"
        ):
            prepared(root)
        # The second start knows it without a look at the pictures.
        monkeypatch.setattr("ldm_lightning.data.scan.open_picture", lambda _: pytest.fail("read again"))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        prepared(root, range=[0, 4095])
        prepared(root, percentile=[0, 100])
    with pytest.warns(UserWarning, match=r"range 10000 \.\.\. 20000"):
        prepared(root, range=[10000, 20000])


def test_flat_pictures_of_8_bits_are_no_news(tmp_path):
    root = folder(tmp_path / "p", np.uint8, 3, 5)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        prepared(root)


def test_findings_of_an_older_version_are_looked_for_again(tmp_path, cache):
    root = folder(tmp_path / "p", np.uint16, 0, 65535)
    prepared(root)
    (file,) = (cache / "scans").iterdir()
    entries = json.loads(file.read_text())
    file.write_text(json.dumps({name: (stamp, finding[:4]) for name, (stamp, finding) in entries.items()}))
    assert prepared(root).source.levels.high.tolist() == [65535] * 20
    assert json.loads(file.read_text()) == entries


def test_range_is_part_of_the_fingerprint(tmp_path):
    root = folder(tmp_path / "p", np.uint16, 0, 65535)
    prints = {
        prepared(root, **options).fingerprint
        for options in ({}, {"range": [0, 65535]}, {"range": [0, 60000]}, {"percentile": [1, 99]})
    }
    assert len(prints) == 4
