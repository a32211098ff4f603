"""``RUN/best``, and whether it still is ``RUN/checkpoints/best.ckpt``, which a run that goes on may replace."""

from __future__ import annotations

import hashlib
import sys
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ldm_lightning.artifact import locate
from ldm_lightning.callbacks.checkpoint_files import BEST
from ldm_lightning.errors import UserError
from ldm_lightning.experiment.saved import read_manifest

__all__ = ["FOLDER", "announce_stale", "identity"]

FOLDER = "best"


def identity(checkpoint: Path) -> str | None:
    """A checksum of the checksums of a checkpoint's records, which its last few kilobytes hold; None if it has none."""
    try:
        with zipfile.ZipFile(checkpoint) as archive:
            records = sorted((record.filename, record.file_size, record.CRC) for record in archive.infolist())
    except (OSError, zipfile.BadZipFile):
        return None
    return hashlib.sha256(repr(records).encode()).hexdigest()


def announce_stale(run: str | Path) -> None:
    """Say in a line if ``run`` is ``RUN/best`` and RUN has found a better checkpoint since.

    Silent where nothing can be compared: of a folder that has moved away from its run, or was written by a version
    that recorded no identity.
    """
    place = locate(Path(run)).absolute()
    if place.name != "export" or place.parent.name != FOLDER:
        return
    home = place.parent.parent
    try:
        manifest: Mapping[str, Any] = read_manifest(place)
    except UserError:
        return  # whoever needs it says so
    now = identity(home / "checkpoints" / BEST)
    if now is not None and manifest.get("checkpoint", now) != now:
        print(
            f"{place.parent} is the model of step {manifest['step']}, but the run has a better checkpoint since: "
            f"ldm finish run={home} takes it",
            file=sys.stderr,
        )
