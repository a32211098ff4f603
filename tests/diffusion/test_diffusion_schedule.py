"""Schedules: exact ends, falling SNR, the inverse, the published tables, and derivatives."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from scipy import stats

from ldm_lightning.diffusion.schedule import (
    LinearFlow,
    Shifted,
    TableSchedule,
    Trigonometric,
    VarianceExploding,
    VariancePreserving,
    cosine_betas,
    flow_time,
    laplace_betas,
    linear_betas,
    scaled_linear_betas,
    sigmoid_betas,
    zero_terminal_snr,
)
from ldm_lightning.errors import UserError

PRECISIONS = pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
WITH_BF16 = pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
TIMES = st.floats(0, 1, exclude_min=True)
BETAS = st.lists(st.floats(1e-4, 0.99), min_size=2, max_size=12)


def double(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


# --- every schedule --------------------------------------------------------------------------------------------------


@WITH_BF16
def test_clean_end_is_exact(schedule, dtype):
    zero = torch.zeros(2, 1, dtype=dtype)
    alpha, sigma = schedule.alpha_sigma(zero)
    assert torch.equal(alpha, torch.ones_like(zero))
    assert torch.equal(sigma, zero)
    assert torch.equal(schedule.log_snr(zero), torch.full_like(zero, math.inf))
    assert torch.equal(schedule.time(torch.full_like(zero, math.inf)), zero)


@WITH_BF16
def test_noisy_end(schedule, dtype):
    one = torch.ones((), dtype=dtype)
    alpha, sigma = schedule.alpha_sigma(one)
    if alpha == 0:
        assert (sigma, schedule.log_snr(one)) == (1, -math.inf)
    else:
        assert 0 < alpha / sigma < 0.1
        assert schedule.log_snr(one).isfinite()
    tolerance = {torch.float64: 1e-12, torch.float32: 1e-5, torch.bfloat16: 0.02}[dtype]
    assert schedule.time(schedule.log_snr(one)).item() == pytest.approx(1, abs=tolerance)
    assert schedule.time(torch.full_like(one, -math.inf)).item() == pytest.approx(1, abs=tolerance)


def test_which_schedules_end_in_pure_noise(schedule):
    pure = {"LinearFlow", "Trigonometric", "Shifted(LinearFlow)"}
    name = type(schedule).__name__
    if name == "Shifted":
        name = f"Shifted({type(schedule.schedule).__name__})"
    expected = schedule.last_alpha is not None if name == "TableSchedule" else name in pure
    assert (schedule.alpha_sigma(torch.ones(1))[0].item() == 0) == expected


@WITH_BF16
def test_answers_keep_shape_and_precision(schedule, dtype):
    t = torch.rand(3, 2, dtype=dtype)
    for answer in (*schedule.alpha_sigma(t), schedule.log_snr(t), schedule.time(schedule.log_snr(t))):
        assert (answer.shape, answer.dtype) == (t.shape, dtype)


@PRECISIONS
def test_snr_falls_and_coefficients_stay_finite_on_a_fine_grid(schedule, dtype):
    t = torch.linspace(0, 1, 3001, dtype=dtype)
    log_snr, (alpha, sigma) = schedule.log_snr(t), schedule.alpha_sigma(t)
    assert (log_snr.diff() < 0).all()
    assert (alpha.diff() <= 0).all()  # EDM: always 1
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


def test_half_precision_follows_and_never_rises(schedule):
    t = torch.linspace(0, 1, 257, dtype=torch.bfloat16)[1:-1]
    half, single = ((s.log_snr(x), *s.alpha_sigma(x)) for s, x in ((schedule, t), (schedule, t.float())))
    assert (half[0].diff() <= 0).all()
    for answer, reference in zip(half, single, strict=True):
        assert answer.isfinite().all()
        torch.testing.assert_close(answer.float(), reference, rtol=0.05, atol=0.1)  # EDM: its root is raised to 7


@WITH_BF16
@settings(deadline=None, max_examples=50)
@given(t=TIMES)
@example(t=2.0**-24)
def test_everything_is_finite_after_the_clean_end(schedule, dtype, t):
    t = torch.tensor([max(t, 2.0**-24)], dtype=dtype)  # the smallest time that training draws
    assert t > 0
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
    # Next to the noisy end times lie close: 1e-16 of t = 1 - 1e-7 is 1e-9 of the log-SNR.
    assert schedule.log_snr(schedule.time(double(log_snr))).item() == pytest.approx(log_snr, abs=1e-8)


@settings(deadline=None, max_examples=50)
@given(t=st.floats(1e-6, 1 - 1e-6))
def test_log_snr_is_the_ratio_of_the_coefficients(schedule, t):
    alpha, sigma = schedule.alpha_sigma(double(t))
    assert (2 * (alpha / sigma).log()).item() == pytest.approx(schedule.log_snr(double(t)).item(), abs=1e-9)


@settings(deadline=None, max_examples=50)
@given(t=TIMES)
def test_flow_time_inverts_the_share_of_the_noise(schedule, t):
    alpha, sigma = schedule.alpha_sigma(double(t))
    assert flow_time(schedule, sigma / (alpha + sigma)).item() == pytest.approx(t, abs=1e-9)


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


# --- closed forms ----------------------------------------------------------------------------------------------------


@given(t=st.floats(0, 1))
def test_variance_preserving_is_equation_33(t):
    alpha, sigma = VariancePreserving(0.1, 20.0).alpha_sigma(double(t))
    log_alpha = -0.25 * t**2 * (20 - 0.1) - 0.5 * t * 0.1
    assert alpha.item() == pytest.approx(math.exp(log_alpha), rel=1e-12)
    assert sigma.item() == pytest.approx((-math.expm1(2 * log_alpha)) ** 0.5, rel=1e-12)


def test_variance_preserving_is_the_limit_of_the_linear_table():
    t = torch.linspace(0.1, 1, 10, dtype=torch.float64)
    limit = VariancePreserving().log_snr(t)
    gaps = [(TableSchedule(linear_betas(n, 0.1 / n, 20 / n)).log_snr(t) - limit).abs().max() for n in (1000, 2000)]
    assert gaps[0] < 0.11
    assert gaps[1] < 0.6 * gaps[0]


@given(t=st.floats(0, 1))
def test_trigonometric_is_the_angle(t):
    alpha, sigma = Trigonometric().alpha_sigma(double(t))
    assert alpha.item() == pytest.approx(math.cos(t * math.pi / 2), abs=1e-15)
    assert sigma.item() == pytest.approx(math.sin(t * math.pi / 2), abs=1e-15)


@pytest.mark.parametrize(("low", "high", "rho"), [(0.002, 80.0, 7.0), (0.01, 50.0, 1.0), (0.02, 100.0, 3.0)])
def test_variance_exploding_is_equation_5(low, high, rho):
    """The steps of Karras et al. 2022, sigma_max first."""
    schedule, n = VarianceExploding(low, high, rho), 18
    i = np.arange(n)
    published = (high ** (1 / rho) + i / (n - 1) * (low ** (1 / rho) - high ** (1 / rho))) ** rho
    t = 1 - torch.from_numpy(i / (n - 1)) * (1 - schedule.t_min)
    alpha, sigma = schedule.alpha_sigma(t)
    np.testing.assert_allclose(sigma, published, rtol=1e-9)
    assert torch.equal(alpha, torch.ones_like(alpha))


def test_variance_exploding_goes_on_to_zero_in_a_straight_line_of_the_same_slope():
    schedule = VarianceExploding()
    t = torch.linspace(0, schedule.t_min, 11, dtype=torch.float64)
    torch.testing.assert_close(schedule.alpha_sigma(t)[1], torch.linspace(0, 0.002, 11, dtype=torch.float64))
    below, above = (
        torch.autograd.functional.jacobian(lambda t: schedule.alpha_sigma(t)[1], double(schedule.t_min + step))
        for step in (-1e-9, 1e-9)
    )
    torch.testing.assert_close(below, above, rtol=1e-5, atol=0)


def test_closed_forms_have_nothing_to_save(schedule):
    assert not getattr(schedule, "state_dict", dict)()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: VariancePreserving(0.0, 20.0), "beta_min=0.0 must be above 0"),
        (lambda: VariancePreserving(5.0, 2.0), "at most beta_max=2.0"),
        (lambda: VarianceExploding(0.0), "set 0 < sigma_min < sigma_max and rho at least 1"),
        (lambda: VarianceExploding(1.0, 0.5), "set 0 < sigma_min < sigma_max and rho at least 1"),
        (lambda: VarianceExploding(rho=0.5), "set 0 < sigma_min < sigma_max and rho at least 1"),
        (lambda: Shifted(LinearFlow(), 0.0), r"shift=0.0 multiplies sigma / alpha: set it above 0"),
        (lambda: Shifted(LinearFlow(), math.nan), "set it above 0"),
    ],
)
def test_impossible_numbers_are_refused_in_one_line(make, message):
    with pytest.raises(UserError, match=message) as error:
        make()
    assert "\n" not in str(error.value)


# --- shift and scale -------------------------------------------------------------------------------------------------


@settings(deadline=None, max_examples=50)
@given(t=st.floats(0, 1), shift=st.floats(0.1, 10))
def test_shifting_the_flow_is_a_change_of_its_time(t, shift):
    """Esser et al. 2024, equation 23, with shift = sqrt(m / n)."""
    moved = double(shift * t / (1 + (shift - 1) * t))
    for answer, expected in zip(
        Shifted(LinearFlow(), shift).alpha_sigma(double(t)), LinearFlow().alpha_sigma(moved), strict=True
    ):
        torch.testing.assert_close(answer, expected, rtol=0, atol=1e-12)


@settings(deadline=None, max_examples=50)
@given(t=st.floats(1e-3, 0.999), shift=st.floats(0.1, 10))
def test_shift_multiplies_the_noise_per_signal_and_keeps_the_scale(schedule, t, shift):
    (alpha, sigma), (shifted_alpha, shifted_sigma) = (
        answer.alpha_sigma(double(t)) for answer in (schedule, Shifted(schedule, shift))
    )
    torch.testing.assert_close(shifted_sigma / shifted_alpha, shift * sigma / alpha)
    base = schedule.schedule if isinstance(schedule, Shifted) else schedule
    if isinstance(base, LinearFlow):
        torch.testing.assert_close(shifted_alpha + shifted_sigma, double(1))
    elif isinstance(base, VarianceExploding):
        assert shifted_alpha == 1
    else:
        torch.testing.assert_close(shifted_alpha**2 + shifted_sigma**2, double(1))


def test_shifts_multiply_and_one_changes_nothing(schedule):
    t = torch.linspace(0, 1, 21, dtype=torch.float64)
    twice, once = Shifted(Shifted(schedule, 2.0), 1.5), Shifted(schedule, 3.0)
    torch.testing.assert_close(twice.alpha_sigma(t), once.alpha_sigma(t))
    torch.testing.assert_close(Shifted(schedule, 1.0).alpha_sigma(t), schedule.alpha_sigma(t))


@settings(deadline=None, max_examples=50)
@given(t=st.floats(0, 1))
def test_coefficients_are_the_scale_of_the_log_snr(schedule, t):
    t = double(t)
    torch.testing.assert_close(schedule.scale(schedule.log_snr(t)), schedule.alpha_sigma(t), rtol=1e-9, atol=1e-12)


@settings(deadline=None, max_examples=50)
@given(log_snr=st.floats(-40, 40))
def test_scale_has_its_log_snr_also_beyond_the_schedule(schedule, log_snr):
    alpha, sigma = schedule.scale(double(log_snr))
    assert 2 * (alpha / sigma).log().item() == pytest.approx(log_snr, abs=1e-9)


# --- tables ----------------------------------------------------------------------------------------------------------


def published_cosine(steps: int) -> list[float]:
    """Nichol & Dhariwal 2021, equation 17 and the cap below it, literally."""

    def f(t: int) -> float:
        return math.cos((t / steps + 0.008) / 1.008 * math.pi / 2) ** 2

    return [min(1 - (f(t) / f(0)) / (f(t - 1) / f(0)), 0.999) for t in range(1, steps + 1)]


def published_sigmoid(steps: int) -> list[float]:
    """Chen 2023, algorithm 1 with start -3, end 3 and tau 1, as signal left after k steps; capped like the cosine."""

    def sigmoid(x: float) -> float:
        return 1 / (1 + math.exp(-x))

    signal = [(sigmoid(3) - sigmoid(6 * k / steps - 3)) / (sigmoid(3) - sigmoid(-3)) for k in range(steps + 1)]
    return [min(1 - after / before, 0.999) for before, after in pairwise(signal)]


def published_laplace(steps: int) -> list[float]:
    """Hang et al. 2024, table 1 with mu = 0 and b = 0.5, as signal left after k steps; capped like the cosine."""

    def signal(t: float) -> float:
        if t in (0, 1):
            return 1 - t
        log_snr = -0.5 * math.copysign(1, 0.5 - t) * math.log(1 - 2 * abs(0.5 - t))
        return 1 / (1 + math.exp(-log_snr))

    return [min(1 - signal(k / steps) / signal((k - 1) / steps), 0.999) for k in range(1, steps + 1)]


TABLES = {
    "linear": (linear_betas, lambda steps: np.linspace(1e-4, 0.02, steps)),
    "scaled_linear": (scaled_linear_betas, lambda steps: np.linspace(0.00085**0.5, 0.012**0.5, steps) ** 2),
    "cosine": (cosine_betas, published_cosine),
    "sigmoid": (sigmoid_betas, published_sigmoid),
    "laplace": (laplace_betas, published_laplace),
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


@pytest.mark.parametrize("name", TABLES)
def test_zero_terminal_snr_is_algorithm_1(name):
    """Lin et al. 2023, literally, for a table that does not end in pure noise yet."""
    betas = TABLES[name][0](1000)
    root = np.sqrt(np.cumprod(1 - betas.numpy()))
    shifted = root - root[-1]
    scaled = shifted * root[0] / (root[0] - root[-1])
    bar = scaled**2
    alphas = np.concatenate([bar[:1], bar[1:] / bar[:-1]])
    rescaled = zero_terminal_snr(betas)
    np.testing.assert_allclose(rescaled, 1 - alphas, rtol=1e-9, atol=1e-12)
    assert rescaled[-1] == 1
    torch.testing.assert_close(rescaled[0], betas[0])
    torch.testing.assert_close(zero_terminal_snr(rescaled), rescaled)


def test_a_table_without_terminal_signal_falls_to_it_in_a_straight_line():
    schedule = TableSchedule(double(0.1, 0.2, 0.3, 1))
    before = (0.9 * 0.8 * 0.7) ** 0.5
    alpha, _ = schedule.alpha_sigma(double(0.75, 0.8, 0.9, 0.99, 1))
    torch.testing.assert_close(alpha, before * double(1, 0.8, 0.4, 0.04, 0))
    torch.testing.assert_close(schedule.time(schedule.log_snr(double(0.7, 0.75, 0.9, 1))), double(0.7, 0.75, 0.9, 1))


@pytest.mark.parametrize(("width", "mean"), [(0.5, 0.0), (0.3, 1.0)])
def test_log_snr_of_the_laplace_table_is_laplace_distributed_at_uniform_times(width, mean):
    log_snr = TableSchedule(laplace_betas(mean=mean, width=width)).log_snr(torch.arange(1, 999).double() / 1000)
    expected = stats.laplace(mean, width).ppf(1 - np.arange(1, 999) / 1000)
    np.testing.assert_allclose(log_snr, expected, rtol=1e-6, atol=1e-6)


@settings(deadline=None, max_examples=50)
@given(betas=BETAS, t=st.floats(0, 1))
def test_tables_preserve_variance(betas, t):
    alpha, sigma = TableSchedule(double(*betas)).alpha_sigma(double(t))
    assert (alpha**2 + sigma**2).item() == pytest.approx(1, abs=1e-14)


@settings(deadline=None, max_examples=50)
@given(betas=BETAS, t=st.floats(1e-6, 1), s=st.floats(1e-6, 1))
@pytest.mark.parametrize("last", [[], [1.0]], ids=["signal left", "pure noise"])
def test_any_table_falls_and_inverts(last, betas, t, s):
    schedule = TableSchedule(double(*betas, *last))
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
    "betas",
    [[0.1], [], [[0.1, 0.2], [0.1, 0.2]], [0.1, 0.0], [1.0, 0.1], [1.0, 1.0], [0.1, 1.1], [-0.1, 0.1], [0.1, math.nan]],
)
def test_impossible_tables_are_refused_in_one_line(betas):
    with pytest.raises(UserError, match="at least two variances, each above 0 and below 1") as error:
        TableSchedule(torch.tensor(betas))
    assert "\n" not in str(error.value)
