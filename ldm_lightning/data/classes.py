"""Classes as data sets write them, and their numbers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from ldm_lightning.errors import UserError

__all__ = ["class_of", "numbered"]


def class_of(value: Any, where: str) -> int | str | None:
    """The class that ``value`` is; None where it is none (None, NaN, blank). Tables with gaps hold 1 as 1.0.

    Args:
        value: as a data set holds it.
        where: names the place in errors.

    Raises:
        UserError: it is neither an integer, a whole number nor a text.
    """
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return None
    if isinstance(value, int | str):
        return None if isinstance(value, str) and not value.strip() else value
    if isinstance(value, float) and value.is_integer():
        return int(value)
    raise UserError(
        f"{where} holds no class but {value!r}: classes are integers, whole numbers or texts; choose another column, "
        "or data.source.label_column=null"
    )


def numbered(classes: Sequence[int | str]) -> tuple[tuple[str, ...], list[int]]:
    """Names of the classes that occur, in their order, and the position of each sample's in them.

    Args:
        classes: of the samples, all numbers or all texts.
    """
    found = sorted(set(classes), key=lambda name: (name, "") if isinstance(name, int) else (0, name))
    positions = {name: position for position, name in enumerate(found)}
    return tuple(map(str, found)), [positions[name] for name in classes]
