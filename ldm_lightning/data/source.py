"""What a data set must answer: the noun `Source`.

A source knows its pictures by position 0 ... len - 1. That position is the *global index* of a sample: every random
number of training is drawn from it, so it must mean the same picture on every rank, in every worker and after every
restart. Everything else (splitting, cropping, batching, sharding) is done once, elsewhere, for all sources.
"""

from __future__ import annotations

from typing import Protocol, runtime_checkable

from ldm_lightning.data.level_table import LevelTable
from ldm_lightning.data.picture import Picture

__all__ = ["Measured", "Source"]


class Source(Protocol):
    """A numbered collection of pictures with optional labels and captions.

    Answers are meaningful after `prepare`; a source not yet prepared is empty.
    """

    @property
    def name(self) -> str:
        """A short name for reports."""
        ...

    @property
    def class_names(self) -> tuple[str, ...]:
        """Names of the classes, by label; empty when the pictures are unlabelled."""
        ...

    @property
    def has_captions(self) -> bool:
        """Whether pictures have texts, those perhaps excepted that lack theirs."""
        ...

    def prepare(self, min_size: int = 1) -> None:
        """Find, read and check the data; a second call does nothing.

        Args:
            min_size: shortest side in pixels that a picture must have to be of use.

        Raises:
            UserError: the data are missing, damaged or too small.
        """
        ...

    def __len__(self) -> int: ...

    def picture(self, i: int) -> Picture:
        """Picture ``i``: in mode ``L`` or ``RGB``, or its numbers where it has more than 8 bits.

        Raises:
            UserError: the picture has become unreadable since `prepare`.
        """
        ...

    def label(self, i: int) -> int | None:
        """Position of the picture's class in `class_names`; None when unlabelled."""
        ...

    def captions(self, i: int) -> tuple[str, ...]:
        """Texts of the picture, none of them blank; empty when it has none."""
        ...

    def content_hash(self, i: int) -> bytes:
        """16 bytes of BLAKE2b over the content: equal for duplicates, whatever their name or place."""
        ...

    def split_key(self, i: int) -> bytes:
        """16 bytes that decide on which side of a split the picture falls, and all pictures with the same.

        The content hash, unless different pictures would give each other away.
        """
        ...


@runtime_checkable
class Measured(Protocol):
    """A source of files, which may hold numbers of any range."""

    @property
    def levels(self) -> LevelTable:
        """Depth and extreme values of all pictures, in order; empty before `Source.prepare`."""
        ...
