"""What is said of a model's samples and of a validation set, on data whose structure and scatter are known."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torch.nn.functional import avg_pool1d, avg_pool2d, avg_pool3d

from ldm_lightning.diagnosis import Run, Trial
from ldm_lightning.diagnosis.samples import _kept, few_to_validate, speckle
from tests.diagnosis.test_diagnosis_findings import STAGE_TWO, config

SETTING = {**STAGE_TWO, "optim": {"lr": 1e-4}, "sampler": {"steps": 25}, "data": {"validation": 0.05}}
CURVES = {"train/loss": [(step, 1.0) for step in range(400)]}


def noise(n: int, axes: int = 2, seed: int = 0) -> Tensor:
    return torch.randn(n, 3, *[8] * axes, generator=torch.Generator().manual_seed(seed))


def smooth(n: int, axes: int = 2, seed: int = 0) -> Tensor:
    """Latents of variance about 1 whose neighbours are correlated by 2/3 along each axis."""
    pool = {1: avg_pool1d, 2: avg_pool2d, 3: avg_pool3d}[axes]
    fields = torch.randn(n, 3, *[10] * axes, generator=torch.Generator().manual_seed(seed))
    return pool(fields, 3, stride=1) * 3 ** (axes / 2)


def mixed(share: float, n: int = 64) -> Tensor:
    """Samples with this share of the covariances of smooth data, and with their variance."""
    return math.sqrt(share) * smooth(n, seed=1) + math.sqrt(1 - share) * noise(n, seed=2)


def judged(real: Tensor, drawn: Tensor) -> tuple[str, str]:
    tried = Trial(500, torch.ones(len(real)), real, drawn)
    verdict = speckle(Run(SETTING, CURVES, trial=tried))
    assert verdict is not None
    return verdict.subject, verdict.state


@pytest.mark.parametrize("axes", [1, 2, 3])
def test_noise_of_the_right_size_is_speckle_and_data_are_not(axes: int) -> None:
    real = smooth(64, axes)
    assert judged(real, noise(64, axes)) == ("samples are speckle", "wrong")
    assert judged(real, smooth(64, axes, seed=1)) == ("structure of the samples", "fine")


def test_bits_are_judged_alike() -> None:
    real = smooth(64).sign()
    assert judged(real, noise(64).sign()) == ("samples are speckle", "wrong")
    assert judged(real, smooth(64, seed=1).sign()) == ("structure of the samples", "fine")


def test_bits_that_only_know_how_often_they_are_on_are_speckle() -> None:
    """Biased bits have products too, which are no sign that places fit each other."""
    real = (smooth(64) > 1).float() * 2 - 1
    assert judged(real, (noise(64) > 1).float() * 2 - 1) == ("samples are speckle", "wrong")


def test_the_share_is_that_of_the_structure_and_its_error_is_how_much_it_scatters() -> None:
    shares, errors = zip(
        *(_kept(smooth(64, seed=s), 0.5**0.5 * smooth(64, seed=s + 50)) for s in range(40)), strict=True
    )
    found = torch.tensor(shares)
    assert float(found.mean()) == pytest.approx(0.5, abs=0.02)
    assert sum(errors) / len(errors) == pytest.approx(float(found.std()), rel=0.35)


def test_what_is_near_the_threshold_is_not_called_wrong_without_being_sure() -> None:
    for share, state in ((0.5, "wrong"), (0.9, "fine")):
        assert judged(smooth(64), mixed(share))[1] == state
    assert judged(smooth(64), mixed(0.74))[1] == "fine"


def test_without_anything_to_compare_with_nothing_is_said() -> None:
    assert judged(noise(64), noise(64, seed=1))[1] == "unknown"  # white data
    assert judged(torch.randn(64, 1, 1), torch.randn(64, 1, 1))[1] == "unknown"  # neither neighbours nor channels
    assert judged(smooth(2), noise(2))[1] in ("unknown", "wrong")
    tried = Trial(500, torch.ones(9), missing="drawing takes minutes")
    for said, reason in ((tried, "drawing takes minutes"), ("the data are gone", "the data are gone")):
        verdict = speckle(Run(SETTING, trial=said))
        assert verdict is not None
        assert (verdict.state, verdict.seen) == ("unknown", reason)
    assert speckle(Run(config())) is None


def test_draws_that_are_not_finite_are_named() -> None:
    assert judged(smooth(64), noise(64) / 0) == ("samples are not finite", "wrong")


def test_speckle_is_blamed_on_what_can_be_changed() -> None:
    run = Run(SETTING, CURVES, trial=Trial(500, torch.ones(64), smooth(64), noise(64)))
    verdict = speckle(run)
    assert verdict is not None
    assert [change.partition(":")[0] for change in verdict.change] == ["trainer.max_steps=1600", "optim.lr=1e-03"]
    assert "64 draws without guidance have" in verdict.seen
    few = speckle(replace(run, config={**SETTING, "sampler": {"steps": 2}, "optim": {"lr": 2e-3}}))
    assert few is not None
    assert few.change[0].startswith("sampler.steps=40: now 2")
    assert not any("optim.lr" in change for change in few.change)


def test_a_validation_set_is_measured_by_the_error_of_its_mean() -> None:
    """Errors that scatter by half of their mean: 100 items have a mean known to 5 %."""
    errors = 1 + 0.5 * torch.tensor([-1.0, 1.0]).repeat(200)
    for n, state in ((22, "wrong"), (95, "wrong"), (105, "fine")):
        verdict = few_to_validate(Run(SETTING, trial=Trial(n, errors)))
        assert verdict.state == state
    verdict = few_to_validate(Run(SETTING, trial=Trial(22, errors[:22])))
    assert "the mean over 22 items has a standard error of 10.9%" in verdict.seen
    assert "about 105 would bring it below 5%" in verdict.seen
    assert verdict.change[0].startswith("data.validation=0.24: now 0.05, for about 105 items")


def test_few_items_are_few_however_little_they_scatter() -> None:
    """A model that has learned nothing errs everywhere alike."""
    errors = 1 + 0.01 * torch.tensor([-1.0, 1.0]).repeat(30)
    for n, state in ((49, "wrong"), (50, "fine")):
        assert few_to_validate(Run(SETTING, trial=Trial(n, errors[:n]))).state == state


def test_no_share_is_advised_that_cannot_be() -> None:
    errors = 1 + 0.5 * torch.tensor([-1.0, 1.0]).repeat(2)
    verdict = few_to_validate(Run(SETTING, trial=Trial(4, errors)))
    assert verdict.state == "wrong"
    assert not any("data.validation" in change for change in verdict.change)
    assert few_to_validate(Run(SETTING, trial=Trial(1, torch.ones(1)))).state == "unknown"
    assert few_to_validate(Run(SETTING)).state == "unknown"
