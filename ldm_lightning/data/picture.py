"""Pictures: decode whatever lies in the file, then bring it to one size.

`open_picture` turns any file that Pillow reads into 8-bit grey (``L``) or colour (``RGB``) as a viewer would show it:
turned upright by its EXIF orientation, the first frame of an animation, transparency laid on white, 16-bit grey scaled
(Pillow's own conversion clips it at 255, which turns scans and depth maps white).

`ImageTransform` is deterministic without a generator (centre crop, no flip), and a pure function of the generator's
stream with one.
"""

from __future__ import annotations

import io
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from ldm_lightning.errors import UserError, nearest

__all__ = ["ImageTransform", "open_picture"]


def _from_wide_grey(picture: Image.Image) -> Image.Image:
    """16-bit grey, held in 16 or 32 bits: 0 ... 65535 becomes 0 ... 255, rounded."""
    levels = np.asarray(picture).astype(np.float64).clip(0, 65535)
    return Image.fromarray(np.rint(levels / 257).astype(np.uint8))


def open_picture(content: bytes | Path | str) -> Image.Image:
    """Decode a picture completely.

    Args:
        content: the bytes of a picture file, or its path.

    Returns:
        The upright picture in mode ``L`` or ``RGB``.

    Raises:
        Exception: of almost any type; decoders are not careful about what they raise on damaged files.
    """
    try:
        with Image.open(io.BytesIO(content) if isinstance(content, bytes) else content) as file:
            file.load()
            picture = ImageOps.exif_transpose(file)
    except UnidentifiedImageError:  # its own message names the buffer
        raise ValueError("not a picture that Pillow knows") from None
    if picture.mode.startswith("I"):
        return _from_wide_grey(picture)
    if picture.mode == "F":
        raise ValueError("pictures of floating-point numbers have no agreed range")
    if "transparency" in picture.info or picture.mode in ("RGBA", "RGBa", "LA", "La", "PA"):
        # LA and PA have no direct way to the premultiplied modes; RGBA is where all of them lead.
        opaque = picture if picture.mode == "RGBA" else picture.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", opaque.size, "white"), opaque).convert("RGB")
    return picture.convert("L" if picture.mode in ("1", "L") else "RGB")


@dataclass(frozen=True)
class ImageTransform:
    """Picture -> (channels, size, size) float32 in [-1, 1].

    Black borders are added, the short side is resized to ``size`` with an antialiasing Lanczos filter, a square is
    cropped and perhaps mirrored.

    Attributes:
        size: side of the result in pixels.
        channels: 1 (grey) or 3 (colour); pictures are converted.
        crop: ``"center"``, or ``"random"`` to place the training crop anywhere along the long side.
        flip: mirror half of the training pictures left to right.
        upscale: enlarge pictures smaller than ``size`` rather than refuse them.
        pad: black pixels added on each of the four sides before anything else (2 turns 28 x 28 into 32 x 32).

    Raises:
        UserError: an attribute is out of its range.
    """

    size: int
    channels: int = 3
    crop: str = "center"
    flip: bool = False
    upscale: bool = False
    pad: int = 0

    def __post_init__(self) -> None:
        if self.channels not in (1, 3):
            raise UserError(f"data.transform.channels={self.channels} is neither 1 (grey) nor 3 (colour)")
        if self.crop not in ("center", "random"):
            hint = nearest(self.crop, ("center", "random"))
            raise UserError(f"data.transform.crop={self.crop} is neither 'center' nor 'random'{hint}")
        if self.size < 1 or self.pad < 0:
            raise UserError(f"data.transform.size={self.size} must be at least 1 and pad={self.pad} at least 0")

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

    def __call__(self, picture: Image.Image, rng: np.random.Generator | None = None) -> Tensor:
        """Transform one picture.

        Args:
            picture: any size, mode ``L`` or ``RGB``; at least `min_size` pixels on the short side.
            rng: where the crop and the mirroring are drawn from; None for the deterministic version.

        Returns:
            (channels, size, size) float32 in [-1, 1].
        """
        picture = ImageOps.expand(picture.convert("L" if self.channels == 1 else "RGB"), self.pad)
        short = min(picture.size)
        width, height = (max(self.size, round(side * self.size / short)) for side in picture.size)
        if short != self.size:
            picture = picture.resize((width, height), Image.Resampling.LANCZOS)
        # All three numbers are always drawn, so that switching one option leaves the others' numbers alone.
        across, down, mirror = (0.5, 0.5, 1.0) if rng is None else rng.random(3)
        if self.crop == "center":
            across = down = 0.5
        left, top = int(across * (width - self.size + 1)), int(down * (height - self.size + 1))
        picture = picture.crop((left, top, left + self.size, top + self.size))
        if self.flip and mirror < 0.5:
            picture = ImageOps.mirror(picture)
        pixels = np.array(picture, dtype=np.float32).reshape(self.size, self.size, self.channels)
        return torch.from_numpy(pixels.transpose(2, 0, 1).copy()).div_(127.5).sub_(1)
