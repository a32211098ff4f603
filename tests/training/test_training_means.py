"""A mean over samples is that of all of them, and NaN is not overlooked."""

from __future__ import annotations

import math

import pytest
import torch

from ldm_lightning.training.means import Means


def test_values_are_weighted_by_their_samples() -> None:
    means = Means()
    means.update({"a": torch.tensor(1.0)}, 3)
    means.update({"a": torch.tensor(5.0)}, 1)
    assert means.pop()["a"] == pytest.approx(2.0)
    assert means.samples == 4
    assert means.pop() == {}
    assert means.samples == 0


def test_nan_stays_nan() -> None:
    means = Means()
    means.update({"a": torch.tensor(1.0)}, 3)
    means.update({"a": torch.tensor(math.nan)}, 1)
    assert math.isnan(means.pop()["a"])
