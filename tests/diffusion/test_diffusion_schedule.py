"""Schedules: exact ends, falling SNR, the inverse, the published tables, and derivatives."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from ldm_lightning.diffusion.schedule import (
    LinearFlow,
    TableSchedule,
    cosine_betas,
    linear_betas,
    scaled_linear_betas,
)
from ldm_lightning.errors import UserError

PRECISIONS = pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
TIMES = st.floats(0, 1, exclude_min=True)
BETAS = st.lists(st.floats(1e-4, 0.99), min_size=2, max_size=12)


def double(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


# --- every schedule --------------------------------------------------------------------------------------------------


@PRECISIONS
def test_clean_end_is_exact(schedule, dtype):
    zero = torch.zeros(2, 1, dtype=dtype)
    alpha, sigma = schedule.alpha_sigma(zero)
    assert torch.equal(alpha, torch.ones_like(zero))
    assert torch.equal(sigma, zero)
    assert torch.equal(schedule.log_snr(zero), torch.full_like(zero, math.inf))
    assert torch.equal(schedule.time(torch.full_like(zero, math.inf)), zero)


@PRECISIONS
def test_noisy_end(schedule, dtype):
    one = torch.ones((), dtype=dtype)
    alpha, sigma = schedule.alpha_sigma(one)
    if isinstance(schedule, LinearFlow):
        assert (alpha, sigma, schedule.log_snr(one)) == (0, 1, -math.inf)
    else:
        assert 0 < alpha < 0.1
        assert sigma > 0.99
    assert schedule.time(schedule.log_snr(one)) == 1
    assert schedule.time(torch.full_like(one, -math.inf)) == 1


@PRECISIONS
def test_answers_keep_shape_and_precision(schedule, dtype):
    t = torch.rand(3, 2, dtype=dtype)
    for answer in (*schedule.alpha_sigma(t), schedule.log_snr(t), schedule.time(schedule.log_snr(t))):
        assert (answer.shape, answer.dtype) == (t.shape, dtype)


@PRECISIONS
def test_snr_falls_and_coefficients_stay_finite_on_a_fine_grid(schedule, dtype):
    t = torch.linspace(0, 1, 3001, dtype=dtype)
    log_snr, (alpha, sigma) = schedule.log_snr(t), schedule.alpha_sigma(t)
    assert (log_snr.diff() < 0).all()
    assert (alpha.diff() < 0).all()
    assert (sigma.diff() >= 0).all()  # rounds to 1 at the end of a table
    assert alpha.isfinite().all()
    assert sigma.isfinite().all()
    assert log_snr[1:-1].isfinite().all()


@settings(deadline=None, max_examples=50)
@given(s=TIMES, t=TIMES)
def test_snr_falls_strictly_between_any_two_times(schedule, s, t):
    s, t = sorted((s, t))
    if t - s > 1e-9:
        later, earlier = schedule.log_snr(double(t, s))
        assert later < earlier


@PRECISIONS
@settings(deadline=None, max_examples=50)
@given(t=TIMES)
@example(t=2.0**-24)
def test_everything_is_finite_after_the_clean_end(schedule, dtype, t):
    t = torch.tensor([max(t, 2.0**-24)], dtype=dtype)  # the smallest time that training draws
    answers = [*schedule.alpha_sigma(t), *([schedule.log_snr(t)] if t < 1 else [])]
    assert all(bool(answer.isfinite()) for answer in answers)


@settings(deadline=None, max_examples=50)
@given(t=TIMES)
def test_time_inverts_log_snr(schedule, t):
    assert schedule.time(schedule.log_snr(double(t))).item() == pytest.approx(t, abs=1e-12)
    single = schedule.time(schedule.log_snr(torch.tensor([t])))
    assert single.item() == pytest.approx(t, abs=5e-6)


@settings(deadline=None, max_examples=50)
@given(log_snr=st.floats(-30, 30))
def test_log_snr_inverts_time(schedule, log_snr):
    log_snr = max(log_snr, schedule.log_snr(double(1)).item())
    assert schedule.log_snr(schedule.time(double(log_snr))).item() == pytest.approx(log_snr, abs=1e-9)


@settings(deadline=None, max_examples=50)
@given(t=st.floats(1e-6, 1 - 1e-6))
def test_log_snr_is_the_ratio_of_the_coefficients(schedule, t):
    alpha, sigma = schedule.alpha_sigma(double(t))
    assert (2 * (alpha / sigma).log()).item() == pytest.approx(schedule.log_snr(double(t)).item(), abs=1e-9)


@settings(deadline=None, max_examples=50)
@given(t=st.floats(1e-4, 1 - 1e-4))
def test_derivatives_in_time_equal_finite_differences(schedule, t):
    step = 1e-7
    knot = round(t * 1000) / 1000  # tables have a kink at every entry
    if abs(t - knot) < 2 * step:
        t = knot + 2 * step

    def answers(t: torch.Tensor) -> torch.Tensor:
        return torch.cat([schedule.log_snr(t), *schedule.alpha_sigma(t)])

    gradient = torch.autograd.functional.jacobian(answers, double(t))[:, 0]
    difference = (answers(double(t + step)) - answers(double(t - step))) / (2 * step)
    torch.testing.assert_close(gradient, difference, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("count", [1, 31, 50])
def test_a_time_does_not_depend_on_its_neighbours_bit_for_bit(schedule, count):
    t = torch.linspace(0.001, 0.999, 100)
    for answer in (schedule.log_snr, lambda t: torch.stack(schedule.alpha_sigma(t), 1), schedule.time):
        assert torch.equal(answer(t), torch.cat([answer(part) for part in t.split(count)]))


# --- the linear flow -------------------------------------------------------------------------------------------------


@given(t=st.floats(0, 1))
def test_linear_flow_interpolates(t):
    alpha, sigma = LinearFlow().alpha_sigma(double(t))
    assert (alpha.item(), sigma.item()) == (1 - t, t)


# --- tables ----------------------------------------------------------------------------------------------------------


def published_cosine(steps: int) -> list[float]:
    """Nichol & Dhariwal 2021, equation 17 and the cap below it, literally."""

    def f(t: int) -> float:
        return math.cos((t / steps + 0.008) / 1.008 * math.pi / 2) ** 2

    return [min(1 - (f(t) / f(0)) / (f(t - 1) / f(0)), 0.999) for t in range(1, steps + 1)]


TABLES = {
    "linear": (linear_betas, lambda steps: np.linspace(1e-4, 0.02, steps)),
    "scaled_linear": (scaled_linear_betas, lambda steps: np.linspace(0.00085**0.5, 0.012**0.5, steps) ** 2),
    "cosine": (cosine_betas, published_cosine),
}


@pytest.mark.parametrize("steps", [2, 50, 1000])
@pytest.mark.parametrize("name", TABLES)
def test_table_entries_are_the_published_ones(name, steps):
    betas, published = TABLES[name]
    np.testing.assert_allclose(betas(steps).numpy(), published(steps), rtol=1e-12, atol=1e-13)


@PRECISIONS
@pytest.mark.parametrize("name", TABLES)
def test_schedule_meets_the_table_at_its_entries(name, dtype):
    steps = 1000
    betas, published = TABLES[name]
    alpha_bar = np.cumprod(1 - np.asarray(published(steps)))
    schedule = TableSchedule(betas(steps))
    alpha, sigma = schedule.alpha_sigma((torch.arange(1, steps + 1, dtype=torch.float64) / steps).to(dtype))
    tolerance = 1e-4 if dtype == torch.float32 else 1e-9
    np.testing.assert_allclose(alpha.numpy(), alpha_bar**0.5, rtol=tolerance)
    np.testing.assert_allclose(sigma.numpy(), (1 - alpha_bar) ** 0.5, rtol=tolerance)


@settings(deadline=None, max_examples=50)
@given(betas=BETAS, t=st.floats(0, 1))
def test_tables_preserve_variance(betas, t):
    alpha, sigma = TableSchedule(double(*betas)).alpha_sigma(double(t))
    assert (alpha**2 + sigma**2).item() == pytest.approx(1, abs=1e-14)


@settings(deadline=None, max_examples=50)
@given(betas=BETAS, t=st.floats(1e-6, 1), s=st.floats(1e-6, 1))
def test_any_table_falls_and_inverts(betas, t, s):
    schedule = TableSchedule(double(*betas))
    first, second = schedule.log_snr(double(t, s)).tolist()
    if abs(t - s) > 1e-9:
        assert (first > second) == (t < s)
    assert schedule.time(double(first)).item() == pytest.approx(t, abs=1e-9)


@settings(deadline=None, max_examples=50)
@given(betas=BETAS)
@example(betas=[0.5] * 4)  # the first piece, read beyond its end, reaches variance 1 exactly at t = 1/2
@example(betas=[0.25] * 4)
def test_any_table_has_finite_falling_slopes(betas):
    t = torch.linspace(0, 1, 4 * len(betas) + 1, dtype=torch.float64)[1:].requires_grad_()
    (slope,) = torch.autograd.grad(TableSchedule(double(*betas)).log_snr(t).sum(), t)
    assert slope.isfinite().all()
    assert (slope < 0).all()


@PRECISIONS
def test_time_inverts_a_table_at_its_entries(schedule, dtype):
    t = torch.arange(1, 1001, dtype=dtype) / 1000
    torch.testing.assert_close(schedule.time(schedule.log_snr(t)), t, rtol=0, atol=1e-5)


def test_slope_of_time_is_the_inverse_of_the_slope_of_log_snr(schedule):
    t = torch.linspace(0.0007, 0.9993, 20, dtype=torch.float64).requires_grad_()
    log_snr = schedule.log_snr(t)
    (one,) = torch.autograd.grad(schedule.time(log_snr).sum(), t)  # through both
    torch.testing.assert_close(one, torch.ones_like(t))


def test_between_entries_log_snr_is_linear_and_below_the_first_the_variance_is():
    schedule = TableSchedule(double(0.1, 0.2, 0.3, 0.4))
    entries = schedule.log_snr(double(0.25, 0.5, 0.75, 1))
    torch.testing.assert_close(schedule.log_snr(double(0.375, 0.625, 0.875)), (entries[1:] + entries[:-1]) / 2)
    _, sigma = schedule.alpha_sigma(double(0.05, 0.125, 0.2))
    torch.testing.assert_close(sigma**2, 0.1 * double(0.2, 0.5, 0.8))


def test_table_is_rebuilt_from_configuration_not_from_a_checkpoint():
    assert not TableSchedule(linear_betas()).state_dict()


@pytest.mark.parametrize(
    "betas", [[0.1], [], [[0.1, 0.2], [0.1, 0.2]], [0.1, 0.0], [0.1, 1.0], [-0.1, 0.1], [0.1, math.nan]]
)
def test_impossible_tables_are_refused_in_one_line(betas):
    with pytest.raises(UserError, match="at least two variances, each above 0 and below 1") as error:
        TableSchedule(torch.tensor(betas))
    assert "\n" not in str(error.value)
