from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ldm_lightning.data.array import ArraySource


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Keep every test's cache to itself."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "ldm_lightning"


@pytest.fixture
def noise():
    """Make a picture of random pixels, another for every seed."""

    def make(seed: int, size: tuple[int, int] = (12, 12)) -> Image.Image:
        pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
        return Image.fromarray(pixels)

    return make


@pytest.fixture
def pictures(tmp_path: Path, noise):
    """Fill a folder with PNG pictures of the given relative paths."""

    def fill(*files: str, size: tuple[int, int] = (12, 12)) -> Path:
        root = tmp_path / "pictures"
        root.mkdir(exist_ok=True)
        for seed, file in enumerate(files):
            (root / file).parent.mkdir(parents=True, exist_ok=True)
            noise(seed, size).save(root / file, format="PNG")
        return root

    return fill


@pytest.fixture
def array():
    """Make a source of distinct random pictures in three classes."""

    def make(count: int, size: tuple[int, int] = (8, 8)) -> ArraySource:
        def load():
            rng = np.random.default_rng(0)
            return rng.integers(0, 256, (count, *size, 3), dtype=np.uint8), np.arange(count) % 3

        return ArraySource("noise", ("a", "b", "c"), load)

    return make
