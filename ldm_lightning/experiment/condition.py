"""Conditions as people write them: classes by name or number."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ldm_lightning.errors import UserError, nearest

__all__ = ["class_number"]


def class_number(name: Any, names: Sequence[str]) -> int:
    """The class called ``name``, else the one of that number.

    Raises:
        UserError: there is none.
    """
    if str(name) in names:
        return names.index(str(name))
    if isinstance(name, int) and 0 <= name < len(names):
        return name
    raise UserError(
        f"the model knows no class '{name}'{nearest(str(name), names)} (classes: {', '.join(names) or 'none'})"
    )
