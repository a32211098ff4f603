"""Names in the hub of Hugging Face, told from folders on this machine."""

from __future__ import annotations

from pathlib import Path

from ldm_lightning.errors import UserError

__all__ = ["check_source", "looks_local"]


def check_source(source: str) -> None:
    """Check that ``source`` is a folder, or may be a name in the hub.

    Raises:
        UserError: it is neither.
    """
    if not Path(source).is_dir() and (source.count("/") != 1 or looks_local(source)):
        raise UserError(f"source={source} is neither a folder nor a name in the hub, such as OWNER/NAME: check it")


def looks_local(place: str) -> bool:
    """Whether ``place`` is written as a folder rather than as a name in the hub."""
    return place.startswith((".", "/", "~"))
