"""What range the numbers of a whole collection have: refused where it is unknown, warned of where little is used."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from math import ceil, floor
from typing import NamedTuple

import numpy as np

from ldm_lightning.data.levels import WHITE
from ldm_lightning.data.scan import Finding
from ldm_lightning.errors import UserError

__all__ = ["LevelTable", "check_levels"]

_FEW = 0.1  # share of the range below which a picture is too flat to be meant so
_NAMED = 5


class LevelTable(NamedTuple):
    """The depth and the extreme values of every picture of a collection, in its order."""

    names: Sequence[str]
    depth: np.ndarray
    low: np.ndarray
    high: np.ndarray

    @classmethod
    def of(cls, names: Sequence[str], findings: Sequence[Finding]) -> LevelTable:
        """Taken from the findings about the pictures of these names."""
        columns = np.array([(found.depth, found.low, found.high) for found in findings], dtype=np.float64)
        depth, low, high = columns.reshape(-1, 3).T
        return cls(names, depth, low, high)


def check_levels(table: LevelTable, collection: str, limits: tuple[float, float] | None) -> None:
    """Check that the pictures' numbers mean something, and warn where they use little of their range.

    Pictures of 8 bits are what they look like, and are only warned of when ``limits`` are set.

    Args:
        table: of the collection.
        collection: its name for messages.
        limits: what is black and white, from ``data.range``; None for 0 ... 65535.

    Raises:
        UserError: there are numbers of no agreed range and no limits.
    """
    unknown = np.flatnonzero(table.depth == 32) if limits is None else np.array([], dtype=int)
    if len(unknown):
        low, high = table.low[unknown].min(), table.high[unknown].max()
        raise UserError(
            f"{collection}: {len(unknown)} of {len(table.names)} pictures hold numbers of no agreed range, here "
            f"{low:.10g} ... {high:.10g}: {_named(table, unknown)}; set data.range={_around(low, high)}, "
            "what is to be black and white"
        )
    black, white = limits or (0.0, WHITE[16])
    used = np.clip(table.high, black, white) - np.clip(table.low, black, white)
    flat = np.flatnonzero((used < _FEW * (white - black)) & ((table.depth > 8) | (limits is not None)))
    if len(flat):
        counted = table.depth > 8 if limits is None else table.depth > 0
        around = _around(table.low[counted].min(), table.high[counted].max())
        mend = (
            f"set data.range={around}" if around != _shown(black, white) else "data.percentile=[0,100] stretches each"
        )
        warnings.warn(
            f"{collection}: {len(flat)} of {len(table.names)} pictures use less than a tenth of the range "
            f"{black:g} ... {white:g} and come out flat: {_named(table, flat)}; {mend}, unless this is meant",
            stacklevel=2,
        )


def _named(table: LevelTable, places: np.ndarray) -> str:
    shown = [f"{table.names[i]} ({table.low[i]:.10g} ... {table.high[i]:.10g})" for i in places[:_NAMED]]
    return ", ".join([*shown, "..."] if len(places) > _NAMED else shown)


def _shown(low: float, high: float) -> str:
    return f"[{low:.10g},{high:.10g}]"


def _around(low: float, high: float) -> str:
    """A range to propose: all bits of the numbers where they are none below 0, and the next whole numbers else."""
    if low >= 0 and high > 1:
        return _shown(0, 2.0 ** max(8, int(high).bit_length()) - 1)
    if low >= 0:
        return "[0,1]"
    return _shown(floor(low), max(ceil(high), floor(low) + 1))
