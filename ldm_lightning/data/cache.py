"""Where things that can be made again are kept: ``$XDG_CACHE_HOME/ldm_lightning``, else ``~/.cache/ldm_lightning``."""

from __future__ import annotations

import os
from pathlib import Path

__all__ = ["cache_folder"]


def cache_folder() -> Path:
    """Return the cache folder, which may not exist yet."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "ldm_lightning"
