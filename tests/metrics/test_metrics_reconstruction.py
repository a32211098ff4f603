from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from ldm_lightning.errors import UserError
from ldm_lightning.metrics.reconstruction import reconstruction_metrics


def pair(count: int = 6, channels: int = 3) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    original = torch.rand(count, channels, 16, 16, generator=generator) * 2 - 1
    noise = torch.randn(original.shape, generator=generator)
    return original + noise * torch.linspace(0.01, 0.5, count)[:, None, None, None], original


def test_known_errors() -> None:
    metrics = reconstruction_metrics()
    original = torch.zeros(2, 1, 8, 8)
    metrics.update(original + torch.tensor([0.2, 0.02])[:, None, None, None], original)
    values = metrics.compute()
    # 10 log10(2^2 / 0.2^2) = 20 dB and 40 dB: the mean over pictures is 30, the pooled error would say 23.
    assert values["psnr"].item() == pytest.approx(30, abs=1e-3)
    assert values["l1"].item() == pytest.approx(0.11, rel=1e-5)


def test_ssim_of_flat_pictures_follows_its_formula_with_black_at_zero() -> None:
    metrics = reconstruction_metrics()
    metrics.update(torch.full((1, 1, 16, 16), 0.2), torch.full((1, 1, 16, 16), -0.2))
    x, y, c1 = 0.6, 0.4, 0.01**2
    assert metrics.compute()["ssim"].item() == pytest.approx((2 * x * y + c1) / (x**2 + y**2 + c1), rel=1e-3)


def test_perfect_and_clamped_pictures() -> None:
    metrics = reconstruction_metrics()
    original = pair()[1].sign()
    metrics.update(original * 3, original)
    values = metrics.compute()
    assert values["psnr"].item() == math.inf
    assert values["ssim"].item() == pytest.approx(1)
    assert values["l1"].item() == 0


def test_batch_split_does_not_matter() -> None:
    reconstruction, original = pair()
    whole, split = reconstruction_metrics(), reconstruction_metrics()
    whole.update(reconstruction, original)
    for part in (slice(0, 1), slice(1, 6)):
        split.update(reconstruction[part], original[part])
    expected = whole.compute()
    assert set(expected) == {"psnr", "ssim", "l1"}
    for name, value in split.compute().items():
        assert value.item() == pytest.approx(expected[name].item(), rel=1e-6)
    whole.reset()
    with pytest.warns(UserWarning, match="before the ``update``"):
        assert whole.compute()["l1"].isnan()


def test_different_shapes_are_refused() -> None:
    with pytest.raises(UserError, match="differ in shape"):
        reconstruction_metrics().update(torch.zeros(1, 1, 8, 8), torch.zeros(1, 3, 8, 8))
