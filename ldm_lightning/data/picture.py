"""Pictures: decode whatever lies in the file, then bring it to one size.

`open_picture` turns any file that Pillow reads into 8-bit grey (``L``) or colour (``RGB``) as a viewer would show it:
turned upright by its EXIF orientation, the first frame of an animation, transparency laid on white. Files of more than
8 bits keep their numbers (`ldm_lightning.data.levels`), which stay floating-point numbers up to the tensor.

`ImageTransform` is deterministic without a generator (centre crop, no flip), and a pure function of the generator's
stream with one.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageFile, ImageOps, UnidentifiedImageError
from torch import Tensor

from ldm_lightning.data.levels import WHITE, Levels, colour_rawmode, read_colour, read_grey, unit
from ldm_lightning.errors import UserError, nearest

__all__ = ["ImageTransform", "Picture", "open_picture"]

_CENTRAL = np.array([0.5, 0.5, 1.0])  # across, down, mirror: what stands for the draws where there are none
_LUMA = np.array([0.299, 0.587, 0.114])  # ITU-R BT.601, as Pillow converts colour to grey


Picture = Image.Image | Levels


def _open(content: bytes | Path | str) -> ImageFile.ImageFile:
    return Image.open(io.BytesIO(content) if isinstance(content, bytes) else content)


def open_picture(content: bytes | Path | str) -> Picture:
    """Decode a picture completely.

    Args:
        content: the bytes of a picture file, or its path.

    Returns:
        The upright picture: in mode ``L`` or ``RGB``, or its numbers where the file has more than 8 bits.

    Raises:
        Exception: of almost any type; decoders are not careful about what they raise on damaged files.
    """
    try:
        with _open(content) as file:
            if layout := colour_rawmode(file):
                with _open(content) as again:
                    return read_colour(file, again, layout)
            file.load()
            picture = ImageOps.exif_transpose(file)
            levels = read_grey(picture, file)
    except UnidentifiedImageError:  # its own message names the buffer
        raise ValueError("not a picture that Pillow knows") from None
    if levels is not None:
        return levels
    if "transparency" in picture.info or picture.mode in ("RGBA", "RGBa", "LA", "La", "PA"):
        # LA and PA have no direct way to the premultiplied modes; RGBA is where all of them lead.
        opaque = picture if picture.mode == "RGBA" else picture.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", opaque.size, "white"), opaque).convert("RGB")
    return picture.convert("L" if picture.mode in ("1", "L") else "RGB")


def _limits(name: str, given: Any) -> tuple[float, float] | None:
    """Two ascending finite numbers."""
    if given is None:
        return None
    shown = f"data.{name}={str(given).replace(' ', '')}"
    numbers = [] if isinstance(given, str) or not isinstance(given, Sequence) else list(given)
    if len(numbers) != 2 or not all(isinstance(x, int | float) and not isinstance(x, bool) for x in numbers):
        raise UserError(f"{shown} is no pair of numbers: give the lower and the upper, as in [0,4095]")
    low, high = map(float, numbers)
    if not -np.inf < low < high < np.inf:
        raise UserError(f"{shown}: the first number must be below the second, and both finite")
    return low, high


@dataclass(frozen=True)
class ImageTransform:
    """Picture -> (channels, size, size) float32 in [-1, 1].

    Black borders are added, the short side is resized to ``size`` with an antialiasing Lanczos filter, a square is
    cropped and perhaps mirrored. Pictures of 8 bits are resized in 8 bits unless a range or percentiles are set; all
    others are mapped to their range first, clipped, and resized as floating-point numbers.

    Attributes:
        size: side of the result in pixels.
        channels: 1 (grey) or 3 (colour); pictures are converted.
        crop: ``"center"``, or ``"random"`` to place the training crop anywhere along the long side.
        flip: mirror half of the training pictures left to right.
        upscale: enlarge pictures smaller than ``size`` rather than refuse them.
        pad: black pixels added on each of the four sides before anything else (2 turns 28 x 28 into 32 x 32).
        range: ``[low, high]``, the numbers of the files that are black and white in all channels, whatever the depth
            of a file; what lies beyond is clipped. None for [0, 255] and [0, 65535], by the depth of a file.
        percentile: ``[low, high]``: black and white are these percentiles of a picture's own numbers, over all of its
            channels, so that every picture is stretched by itself. Instead of ``range``.

    Raises:
        UserError: an attribute is out of its range.
    """

    size: int
    channels: int = 3
    crop: str = "center"
    flip: bool = False
    upscale: bool = False
    pad: int = 0
    range: Sequence[float] | None = None
    percentile: Sequence[float] | None = None

    def __repr__(self) -> str:
        """All attributes but an unset range and percentile: fingerprints and caches from before them stay good."""
        shown = {field.name: getattr(self, field.name) for field in fields(self)}
        kept = [f"{name}={value!r}" for name, value in shown.items() if value is not None]
        return f"{type(self).__name__}({', '.join(kept)})"

    def __post_init__(self) -> None:
        object.__setattr__(self, "range", _limits("range", self.range))
        object.__setattr__(self, "percentile", _limits("percentile", self.percentile))
        if self.range and self.percentile:
            raise UserError("data.range and data.percentile both say what is black and white: set one of them")
        if self.percentile and not 0 <= self.percentile[0] < self.percentile[1] <= 100:
            low, high = self.percentile
            raise UserError(f"data.percentile=[{low:g},{high:g}] must lie within 0 and 100, as in [1,99]")
        if self.channels not in (1, 3):
            raise UserError(f"data.transform.channels={self.channels} is neither 1 (grey) nor 3 (colour)")
        if self.crop not in ("center", "random"):
            hint = nearest(self.crop, ("center", "random"))
            raise UserError(f"data.transform.crop={self.crop} is neither 'center' nor 'random'{hint}")
        if self.size < 1 or self.pad < 0:
            raise UserError(f"data.transform.size={self.size} must be at least 1 and pad={self.pad} at least 0")

    @property
    def limits(self) -> tuple[float, float] | None:
        """What is black and white by `range`; None without."""
        return None if self.range is None else (self.range[0], self.range[1])

    @property
    def min_size(self) -> int:
        """Shortest side in pixels of a picture that need not be enlarged, or 1 when enlarging is allowed."""
        return 1 if self.upscale else max(1, self.size - 2 * self.pad)

    def wanders(self, size: tuple[int, int]) -> bool:
        """Whether the training crop of a picture of ``size`` (width, height) may differ from the central one."""
        short = min(size) + 2 * self.pad
        return self.crop == "random" and any(
            round((side + 2 * self.pad) * self.size / short) > self.size for side in size
        )

    def __call__(self, picture: Picture, rng: np.random.Generator | None = None) -> Tensor:
        """Transform one picture.

        Args:
            picture: any size, mode ``L`` or ``RGB``, or numbers; at least `min_size` pixels on the short side.
            rng: where the crop and the mirroring are drawn from; None for the deterministic version.

        Returns:
            (channels, size, size) float32 in [-1, 1].

        Raises:
            UserError: these are numbers of no agreed range, and none is set.
        """
        # All three numbers are always drawn, so that switching one option leaves the others' numbers alone.
        draws = _CENTRAL if rng is None else rng.random(3)
        if isinstance(picture, Image.Image) and self.range is None and self.percentile is None:
            placed = self._place(picture.convert("L" if self.channels == 1 else "RGB"), draws)
            pixels = np.array(placed, dtype=np.float32).reshape(self.size, self.size, self.channels)
            return torch.from_numpy(pixels.transpose(2, 0, 1).copy()).div_(127.5).sub_(1)
        planes = [np.asarray(self._place(plane, draws)) for plane in self._planes(picture)]
        pixels = np.stack(planes).clip(0, 1)  # Lanczos overshoots at edges
        return torch.from_numpy(pixels).mul_(2).sub_(1).repeat(self.channels // len(planes), 1, 1)

    def mirrors(self, draws: np.ndarray) -> np.ndarray:
        """Which pictures are mirrored in training.

        Args:
            draws: (..., 3 or more) uniform numbers in [0, 1), the first that the generator of each picture gives.

        Returns:
            (...) bool.
        """
        mirrored: np.ndarray = self.flip & (draws[..., 2] < 0.5)
        return mirrored

    def _place(self, picture: Image.Image, draws: np.ndarray) -> Image.Image:
        """Border, resize, crop and mirror."""
        picture = ImageOps.expand(picture, self.pad)
        short = min(picture.size)
        width, height = (max(self.size, round(side * self.size / short)) for side in picture.size)
        if short != self.size:
            picture = picture.resize((width, height), Image.Resampling.LANCZOS)
        across, down, _ = draws
        if self.crop == "center":
            across = down = 0.5
        left, top = int(across * (width - self.size + 1)), int(down * (height - self.size + 1))
        picture = picture.crop((left, top, left + self.size, top + self.size))
        return ImageOps.mirror(picture) if self.mirrors(draws) else picture

    def _planes(self, picture: Picture) -> list[Image.Image]:
        """The channels, or the one that all share, of floating-point numbers from 0, black, to 1, white."""
        levels = picture if isinstance(picture, Levels) else Levels(np.asarray(picture), 8)
        values = levels.values
        if self.percentile is not None:
            low, high = np.percentile(values, self.percentile)
        elif self.limits is not None:
            low, high = self.limits
        elif levels.depth in WHITE:
            low, high = 0.0, WHITE[levels.depth]
        else:
            raise UserError(f"numbers from {values.min():g} to {values.max():g} have no agreed range: set data.range")
        pixels = unit(values, float(low), float(high))
        if pixels.ndim == 3 and self.channels == 1:
            pixels = (pixels @ _LUMA).astype(np.float32)
        return [Image.fromarray(np.ascontiguousarray(plane)) for plane in np.moveaxis(np.atleast_3d(pixels), 2, 0)]
