"""Pictures of more than 8 bits: their numbers as the file holds them, and what these mean as black and white.

Pillow has no colour picture of more than 8 bits and cuts such files to the high byte of every number. `read_colour`
reads them twice, the second time with the order of the bytes exchanged, which yields the low byte.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image, ImageFile, ImageOps

__all__ = ["WHITE", "Levels", "colour_rawmode", "read_colour", "read_grey", "unit"]

WHITE = {8: 255.0, 16: 65535.0}  # what is white, by depth; black is 0. Other numbers have no agreed range.
_SIXTEEN = ("PNG", "PPM", "JPEG2000")  # formats whose grey in 32-bit integers, as Pillow holds it, are 16 bits
_EXCHANGED = {"B": "L", "L": "B", "N": "B" if sys.byteorder == "little" else "L"}
_BITS, _SAMPLE_FORMAT = 258, 339  # tags of TIFF


@dataclass(frozen=True)
class Levels:
    """The numbers of a picture.

    Attributes:
        values: (height, width) of grey or (height, width, 3) of colour; integers or finite floating-point numbers.
        depth: 16 for 0 ... 65535, 32 for numbers of no agreed range.
    """

    values: np.ndarray
    depth: int

    @property
    def size(self) -> tuple[int, int]:
        """(width, height), as of a Pillow picture."""
        return self.values.shape[1], self.values.shape[0]


def unit(values: np.ndarray, low: float, high: float) -> np.ndarray:
    """``low`` ... ``high`` to 0 ... 1 in float32, clipped; where both are the same, whatever is not above is 0."""
    span = high - low if high > low else np.finfo(np.float64).tiny
    return ((np.clip(values.astype(np.float64), low, high) - low) / span).astype(np.float32)


def read_grey(picture: Image.Image, file: Image.Image) -> Levels | None:
    """The numbers of an upright grey picture of more than 8 bits, opened from ``file``; None for all other pictures.

    Raises:
        ValueError: some are not finite.
    """
    tags: Any = getattr(file, "tag_v2", {})
    bits, kind = tags.get(_BITS), tags.get(_SAMPLE_FORMAT)
    values = np.asarray(picture)
    if picture.mode == "F":
        if not np.isfinite(values).all():
            raise ValueError("it holds NaN or infinity")
        return Levels(values, 32)
    if picture.mode.startswith("I;16") or (picture.mode == "I" and file.format in _SIXTEEN):
        return Levels(values.astype(np.uint16), 16)
    if picture.mode == "I":  # Pillow takes unsigned numbers of 32 bits for signed ones
        return Levels(values.view(np.uint32) if bits == (32,) and kind in (None, (1,)) else values, 32)
    if picture.mode == "L" and kind == (2,):  # and signed ones of 8 bits for unsigned ones
        return Levels(values.view(np.int8), 32)
    return None


def colour_rawmode(file: Image.Image) -> str | None:
    """The layout of a colour file, or grey with transparency, of 16 bits not yet decoded; None for all others."""
    tiles = getattr(file, "tile", None)
    if not tiles:
        return None
    arguments = tiles[0][3]
    layout = arguments[0] if isinstance(arguments, tuple) and arguments else arguments
    known = isinstance(layout, str) and layout[:-1] in ("RGB;16", "RGBA;16", "LA;16", "RGBX;16")
    return str(layout) if known else None


def read_colour(high: ImageFile.ImageFile, low: ImageFile.ImageFile, layout: str) -> Levels:
    """The numbers of a file of 16-bit colour, upright, with transparency laid on white.

    Args:
        high: the file, opened.
        low: the same, opened once more.
        layout: what `colour_rawmode` answered.
    """
    if layout.startswith("LA"):  # four bytes a pixel: taken for colour with transparency, these are all of them
        grey, rest, alpha, rest_of_alpha = np.moveaxis(_decode(high, "RGBA"), 2, 0)
        pixels = np.stack([grey * 256.0 + rest, alpha * 256.0 + rest_of_alpha], 2)
    else:
        pixels = _decode(high, layout) * 256.0 + _decode(low, layout[:-1] + _EXCHANGED[layout[-1]])
    if pixels.shape[2] % 2 == 0:
        opacity = pixels[..., -1:] / WHITE[16]
        pixels = pixels[..., :-1] * opacity + WHITE[16] * (1 - opacity)
    values = np.rint(pixels).astype(np.uint16)
    return Levels(values[..., 0] if values.shape[2] == 1 else values, 16)


def _decode(file: ImageFile.ImageFile, layout: str) -> np.ndarray:
    """(height, width, channels) bytes of an upright picture, decoded as if its bytes had this layout."""
    tiles: list[Any] = []
    for tile in list[Any](file.tile):
        codec, extents, offset, arguments = tile
        changed = (codec, extents, offset, layout if isinstance(arguments, str) else (layout, *arguments[1:]))
        tiles.append(tile._make(changed) if hasattr(tile, "_make") else changed)  # plain tuples before Pillow 11
    file.tile = tiles
    file.load()
    return np.asarray(ImageOps.exif_transpose(file))
