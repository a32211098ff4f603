"""Names that saved configurations hold and that have moved since: where they lie now."""

from __future__ import annotations

from typing import Any, TypeVar

__all__ = ["renamed"]

Saved = TypeVar("Saved")

_MOVED = {"ldm_lightning.cli.guidance.autoguidance": "ldm_lightning.experiment.guidance.autoguidance"}


def renamed(saved: Saved) -> Saved:
    """Plain values (any nesting of dicts and lists) with every ``_target_`` by its present name."""
    moved: Any = saved
    if isinstance(saved, dict):
        moved = {
            key: _MOVED.get(value, value) if key == "_target_" and isinstance(value, str) else renamed(value)
            for key, value in saved.items()
        }
    elif isinstance(saved, list | tuple):
        moved = type(saved)(map(renamed, saved))
    return moved  # type: ignore[no-any-return]
