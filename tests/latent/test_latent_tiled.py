"""Tiles against the whole: exactly for what looks locally, bounded memory, no seams."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ldm_lightning.errors import UserError
from ldm_lightning.latent.tiled import tile_starts, tiled


@pytest.mark.parametrize(("length", "tile", "stride"), [(10, 4, 3), (16, 8, 4), (7, 8, 4), (9, 4, 4), (8, 8, 1)])
def test_tiles_cover_everything_and_stay_inside(length, tile, stride):
    starts = tile_starts(length, tile, stride)
    covered = {place for start in starts for place in range(start, min(start + tile, length))}
    assert covered == set(range(length))
    assert all(0 <= start <= max(0, length - tile) for start in starts)
    assert starts == sorted(set(starts))


@pytest.mark.parametrize("overlap", [0, 4, 8, 12])
@pytest.mark.parametrize("size", [(32, 32), (40, 24), (16, 16), (8, 36)])
def test_what_looks_at_single_elements_is_unchanged(size, overlap):
    x = torch.randn(2, 3, *size, dtype=torch.float64)
    torch.testing.assert_close(tiled(lambda part: part.square(), x, 16, overlap, 1), x.square())
    torch.testing.assert_close(tiled(lambda part: F.avg_pool2d(part, 4), x, 16, overlap, 1 / 4), F.avg_pool2d(x, 4))
    up = lambda part: F.interpolate(part, scale_factor=2.0)  # noqa: E731
    torch.testing.assert_close(tiled(up, x, 16, overlap, 2), up(x))


def test_a_convolution_is_unchanged_away_from_the_borders_of_tiles():
    torch.manual_seed(0)
    conv = nn.Conv2d(3, 4, 5, padding=2, dtype=torch.float64)
    x = torch.randn(1, 3, 48, 48, dtype=torch.float64)
    with torch.no_grad():
        error = (tiled(conv, x, 32, 16, 1) - conv(x)).abs().amax((0, 1))
    # Tiles begin at 0 and 16 and end at 32 and 48: two pixels from there, all is seen.
    assert error[:14, :14].max() < 1e-12
    assert error[18:30, 18:30].max() < 1e-12
    assert error[34:, 34:].max() < 1e-12
    assert error.max() > 1e-3


def test_no_tile_is_larger_than_asked_for():
    sizes = []

    def watch(part: Tensor) -> Tensor:
        sizes.append(tuple(part.shape[2:]))
        return part

    tiled(watch, torch.zeros(1, 1, 50, 100), 16, 4, 1)
    assert set(sizes) == {(16, 16)}


def test_tiles_that_disagree_fade_into_each_other():
    """Tile k answers the constant k: the seam is a ramp, without a jump."""
    count = iter(range(10))
    out = tiled(lambda part: torch.full_like(part, float(next(count))), torch.zeros(1, 1, 8, 24), 16, 8, 1)[0, 0, 0]
    assert out[:8].eq(0).all()
    assert out[16:].eq(1).all()
    assert out.diff().max() <= 1 / 8 + 1e-6
    assert (out.diff() >= 0).all()


@pytest.mark.parametrize(("tile", "overlap"), [(16, 16), (16, -4), (18, 4), (16, 2)])
def test_tiles_that_do_not_fit_the_factor_are_refused(tile, overlap):
    with pytest.raises(UserError, match=f"tile={tile}"):
        tiled(lambda part: F.avg_pool2d(part, 4), torch.zeros(1, 1, 64, 64), tile, overlap, 1 / 4)
