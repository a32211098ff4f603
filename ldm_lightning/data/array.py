"""Pictures held in memory as one array, which is how the classic small data sets come."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from PIL import Image

from ldm_lightning.data.scan import content_hash
from ldm_lightning.errors import UserError

__all__ = ["ArraySource"]


class ArraySource:
    """A labelled array of equally large pictures, loaded at the first `prepare`.

    Args:
        name: name for reports.
        class_names: names of the classes, by label.
        load: returns the pictures, uint8 of shape (N, H, W) or (N, H, W, 3), and the labels, integers of shape (N,).
    """

    has_captions = False

    def __init__(
        self, name: str, class_names: tuple[str, ...], load: Callable[[], tuple[np.ndarray, np.ndarray]]
    ) -> None:
        self.name, self.class_names, self._load = name, class_names, load
        self._pictures = np.empty((0, 1, 1), dtype=np.uint8)
        self._labels = np.empty(0, dtype=np.int64)
        self._hashes: list[bytes] = []

    def prepare(self, min_size: int = 1) -> None:
        """Load the array.

        Raises:
            UserError: the pictures are smaller than ``min_size``, or whatever ``load`` raises.
        """
        if len(self._labels):
            return
        pictures, labels = self._load()
        height, width = pictures.shape[1:3]
        if min(height, width) < min_size:
            raise UserError(
                f"{self.name}: its pictures of {width}x{height} are smaller than the {min_size} pixels asked for: set "
                f"data.transform.size={min(height, width)} with data.transform.pad=0, or data.transform.upscale=true"
            )
        self._pictures, self._labels = pictures, labels
        # Once for all: splits, fingerprint and latent caches ask for them again and again.
        self._hashes = [content_hash(repr(picture.shape).encode() + picture.tobytes()) for picture in pictures]

    def __len__(self) -> int:
        return len(self._labels)

    def picture(self, i: int) -> Image.Image:
        """Picture ``i`` in mode ``L`` or ``RGB``."""
        return Image.fromarray(self._pictures[i])

    def label(self, i: int) -> int | None:
        """Position of the picture's class in `class_names`."""
        return int(self._labels[i])

    def captions(self, i: int) -> tuple[str, ...]:
        """Empty: there are no captions."""
        return ()

    def content_hash(self, i: int) -> bytes:
        """16 bytes of BLAKE2b over shape and pixels."""
        return self._hashes[i]

    def split_key(self, i: int) -> bytes:
        """The content hash."""
        return self.content_hash(i)
