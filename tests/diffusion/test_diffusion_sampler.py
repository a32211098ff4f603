"""What all samplers keep, whatever the network: costs, times, first and last step, precision, and randomness."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten

from ldm_lightning.diffusion.denoised import Denoised, Level, answering
from ldm_lightning.diffusion.denoiser import Denoiser
from ldm_lightning.diffusion.guidance import ClassifierFree
from ldm_lightning.diffusion.path import GaussianPath
from ldm_lightning.diffusion.sampler import (
    DDIM,
    DDPM,
    EDM,
    PLMS,
    RK4,
    AdaptiveODE,
    DPMSolver2M,
    Euler,
    EulerAncestral,
    Heun,
    Sampler,
    UniPC,
    flow_grid,
    karras_grid,
    log_snr_grid,
    quadratic_grid,
    signal_scale,
    trajectory,
    uniform_grid,
)
from ldm_lightning.diffusion.sampler.adaptive import SLOPES
from ldm_lightning.diffusion.sampler.trajectory import FreshNoise
from ldm_lightning.diffusion.schedule import LinearFlow, TableSchedule, scaled_linear_betas
from ldm_lightning.errors import UserError
from ldm_lightning.rng import Streams

# Those that end in the denoiser's last answer, and those that extrapolate to the clean end.
DENOISING = {"euler": Euler(), "heun": Heun(), "ddim": DDIM(), "2m": DPMSolver2M(), "unipc": UniPC()}
DETERMINISTIC = DENOISING | {"plms": PLMS(), "rk4": RK4()}
STOCHASTIC = {
    "ddim_half": DDIM(eta=0.5),
    "ddim_one": DDIM(eta=1.0),
    "ddpm": DDPM(),
    "ancestral": EulerAncestral(),
    "2m_sde": DPMSolver2M(eta=1.0),
    "edm": EDM(),
}
SAMPLERS = DETERMINISTIC | STOCHASTIC
GRIDS = {
    "uniform": uniform_grid,
    "quadratic": quadratic_grid,
    "flow": flow_grid,
    "karras": karras_grid,
    "log_snr": log_snr_grid,
}


@pytest.fixture(params=SAMPLERS)
def sampler(request) -> Sampler:
    return SAMPLERS[request.param]


@pytest.fixture(params=DENOISING | STOCHASTIC)
def denoising(request) -> Sampler:
    return SAMPLERS[request.param]


class Still:
    """Streams of zeros, for tests that count."""

    def normals(self, purposes: list[str], shape: tuple[int, ...]) -> Tensor:
        return torch.zeros(len(purposes), 1, *shape)


class Draws:
    """Streams that remember the purposes asked for."""

    def __init__(self, streams: Streams) -> None:
        self.streams, self.purposes = streams, []

    def normals(self, purposes: list[str], shape: tuple[int, ...]) -> Tensor:
        self.purposes += purposes
        return self.streams.normals(purposes, shape)


def shrink(z: Tensor, t: Tensor) -> Tensor:
    """An elementwise denoiser, exact to the bit in any batch."""
    return z * (1 - t.view(-1, *[1] * (z.ndim - 1)) / 2) + 0.1


SHRINK = answering(shrink)


# --- the grid --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("grid", GRIDS.values(), ids=GRIDS)
@settings(deadline=None, max_examples=10)
@given(steps=st.integers(1, 1000))
def test_grids_go_strictly_from_one_to_zero_and_join_up(grid, path, steps):
    """In single precision, as the network is told them."""
    pairs = trajectory(grid, steps, path, torch.zeros(3, 2))
    times = torch.stack([pairs[0][0].time, *[s.time for _, s in pairs]])
    assert (times.shape, times.dtype) == ((steps + 1, 3), torch.float32)
    assert torch.equal(times[[0, -1]], torch.tensor([[1.0] * 3, [0.0] * 3]))
    assert (times.diff(dim=0) < 0).all()
    assert all(s is t for (_, s), (t, _) in pairwise(pairs))


@pytest.mark.parametrize("grid", GRIDS.values(), ids=GRIDS)
def test_levels_are_those_of_the_schedule(grid, path):
    pairs = trajectory(grid, 7, path, torch.zeros(1, 2, dtype=torch.float64))
    levels = [pairs[0][0], *[s for _, s in pairs]]
    times = torch.cat([level.time for level in levels])
    torch.testing.assert_close(times, grid(7, path.schedule), rtol=0, atol=0)
    alpha, sigma = path.schedule.alpha_sigma(times)
    assert [(x.alpha, x.sigma) for x in levels] == list(zip(alpha.tolist(), sigma.tolist(), strict=True))
    assert [x.log_snr for x in levels] == path.schedule.log_snr(times).tolist()


@settings(deadline=None, max_examples=30)
@given(steps=st.integers(1, 1000))
def test_uniform_grid_is_even_to_double_precision(steps):
    expected = [1 - step / steps for step in range(steps + 1)]
    torch.testing.assert_close(
        uniform_grid(steps, LinearFlow()), torch.tensor(expected, dtype=torch.float64), rtol=0, atol=1e-15
    )


def test_quadratic_grid_is_even_in_the_root_of_time():
    roots = quadratic_grid(10, LinearFlow()).sqrt()
    torch.testing.assert_close(roots.diff(), torch.full_like(roots[1:], -0.1), rtol=0, atol=1e-12)


@pytest.mark.parametrize("rho", [1.0, 7.0])
def test_karras_grid_is_equation_5(path, rho):
    """But for its first time, which is 1 also where sigma / alpha is beyond 80."""
    times, n = karras_grid(20, path.schedule, rho), 20
    level = (-path.schedule.log_snr(times)[:-1] / 2).exp()
    highest = min(float(level[0]), 80)
    lowest = max(0.002, float((-path.schedule.log_snr(times.new_tensor(1e-3)) / 2).exp()))
    expected = [
        (highest ** (1 / rho) + i / (n - 1) * (lowest ** (1 / rho) - highest ** (1 / rho))) ** rho for i in range(n)
    ]
    torch.testing.assert_close(level[1:], times.new_tensor(expected[1:]))


def test_log_snr_grid_is_even_in_log_snr_within_its_range(path):
    level = path.schedule.log_snr(log_snr_grid(20, path.schedule))[1:-1]
    torch.testing.assert_close(level.diff(), level.diff().mean().expand(18))
    assert level[-1] <= -2 * math.log(0.002) + 1e-9
    assert level[0] > -2 * math.log(80.0)


# --- costs -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("schedule", [LinearFlow(), TableSchedule(scaled_linear_betas())], ids=["flow", "table"])
@pytest.mark.parametrize("name", SAMPLERS)
@settings(deadline=None, max_examples=4)
@given(steps=st.integers(1, 1000))
def test_evaluations_is_the_number_of_network_calls(schedule, name, steps):
    sampler, times = replace(SAMPLERS[name], steps=steps), []

    def denoise(z: Tensor, t: Tensor) -> Tensor:
        times.append(t.item())
        return 0.5 * z

    z = sampler(answering(denoise), GaussianPath(schedule), torch.ones(1, 1), Still())
    assert len(times) == sampler.evaluations
    assert z.isfinite().all()
    assert times[0] == 1
    assert min(times) > 0
    assert name in ("plms", "edm") or times == sorted(times, reverse=True)  # these two step back


def test_documented_costs():
    assert [SAMPLERS[name].evaluations for name in ("euler", "ddim", "ddim_one")] == [50, 50, 50]
    assert (Heun(steps=25).evaluations, DDPM(steps=250).evaluations) == (49, 250)
    assert [SAMPLERS[name].evaluations for name in ("2m", "2m_sde", "unipc", "ancestral")] == [25, 25, 25, 50]
    assert (EDM(steps=25).evaluations, RK4(steps=13).evaluations) == (49, 51)
    assert [PLMS(steps=n).evaluations for n in (1, 2, 3, 50)] == [1, 3, 4, 51]


@pytest.mark.parametrize("steps", [0, -3])
def test_no_steps_are_refused(sampler, path, steps):
    with pytest.raises(UserError, match=f"sampler.steps={steps}: at least one step is needed"):
        replace(sampler, steps=steps)(SHRINK, path, torch.zeros(1, 1), Streams(0, torch.zeros(1)))


class Hurried(TorchDispatchMode):
    """From the first question to the denoiser on, everything happens on one device and no value is read."""

    def __init__(self, device: str) -> None:
        super().__init__()
        self.device, self.looping, self.operations = torch.device(device), False, 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        if self.looping:
            self.operations += 1
            name = str(func)
            assert not any(word in name for word in ("_local_scalar_dense", "nonzero", "is_nonzero", "aten.equal")), (
                name
            )
            for leaf in tree_flatten((args, kwargs, out))[0]:
                assert not isinstance(leaf, Tensor) or leaf.device == self.device, f"{name} on {leaf.device}"
        return out

    def watch(self, denoise):
        def watched(z: Tensor, level: Level) -> Denoised:
            self.looping = True
            return denoise(z, level)

        return watched


def test_the_loop_never_waits_for_the_device(sampler, path):
    """On a GPU, reading a value or copying to or from the host waits for all work handed out so far.

    Latents without contents stand for a GPU's: no value of theirs can be read, and the host's are another device. The
    adaptive solver waits, and says so.
    """
    z, streams = torch.empty(4, 3, 2, 2, device="meta"), Streams(0, torch.arange(4, device="meta"))
    with Hurried("meta") as mode:
        out = replace(sampler, steps=20)(mode.watch(SHRINK), path, z, streams)
    assert (out.shape, out.device) == (z.shape, z.device)
    assert mode.operations > 60


def test_a_loop_that_waits_is_noticed(path):
    z, streams = torch.zeros(2, 3), Streams(0, torch.arange(2))
    with pytest.raises(AssertionError, match="_local_scalar_dense"), Hurried("cpu") as mode:
        Euler(3)(mode.watch(answering(lambda z, t: z * float(t[0]))), path, z, streams)
    z = torch.empty(2, 3, device="meta")
    with pytest.raises(AssertionError, match="on cpu"), Hurried("meta") as mode:
        Euler(3)(mode.watch(answering(lambda z, t: z * torch.tensor([1.0, 2.0, 3.0]).to("meta"))), path, z, streams)


@pytest.mark.usefixtures("allowed")
def test_the_denoiser_reads_no_value(path, prediction):
    """Nor does guidance, whatever the network predicts."""

    class Network(nn.Module):
        def forward(self, z: Tensor, t: Tensor, condition: dict[str, Tensor], drop: Tensor) -> Tensor:
            return z * 0.5

    denoise = ClassifierFree(2.0)(Denoiser(Network(), path, prediction), {})
    with Hurried("cpu") as mode:
        mode.watch(denoise)(torch.randn(4, 3), Level(torch.linspace(0.1, 1, 4), 0.5))
    assert mode.operations > 5


# --- first and last step ---------------------------------------------------------------------------------------------


def test_one_step_answers_the_denoiser_at_pure_noise(denoising, path):
    z = torch.randn(5, 2, 3, dtype=torch.float64)
    out = replace(denoising, steps=1)(SHRINK, path, z, Streams(0, torch.arange(5)))
    torch.testing.assert_close(out, shrink(z, torch.ones(5)), rtol=0, atol=1e-12)


@pytest.mark.parametrize("steps", [1, 2, 7])
def test_the_last_step_answers_the_last_clean_data(denoising, path, steps):
    """Nothing is clipped and no noise is left: what comes out is the denoiser's last word."""
    answers = []

    def denoise(z: Tensor, t: Tensor) -> Tensor:
        answers.append(40 * shrink(z, t))
        return answers[-1]

    z = torch.randn(5, 2, dtype=torch.float64)
    out = replace(denoising, steps=steps)(answering(denoise), path, z, Streams(0, torch.arange(5)))
    torch.testing.assert_close(out, answers[-1], rtol=1e-12, atol=1e-9)


def test_perfect_knowledge_is_kept(sampler, path):
    """A denoiser that always answers the same clean data leads there from anywhere."""
    z0 = torch.randn(4, 3, dtype=torch.float64)
    out = replace(sampler, steps=9)(answering(lambda z, t: z0), path, torch.randn_like(z0), Streams(0, torch.arange(4)))
    torch.testing.assert_close(out, z0)


# --- one method, many names ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("steps", [1, 2, 13])
def test_euler_is_ddim_without_noise(path, steps):
    z, streams = torch.randn(4, 3, dtype=torch.float64), Streams(0, torch.arange(4))
    euler, ddim = (make(steps=steps)(SHRINK, path, z, streams) for make in (Euler, DDIM))
    torch.testing.assert_close(euler, ddim, rtol=1e-11, atol=1e-11)


def test_euler_on_the_linear_flow_is_a_step_along_the_velocity():
    z, steps = torch.randn(4, 3, dtype=torch.float64), 5
    expected = z
    for step in range(steps):
        t = torch.full((4,), 1 - step / steps, dtype=torch.float64)
        expected = expected - (expected - shrink(expected, t)) / t[:, None] / steps  # dz/dt = (z - z_0) / t
    torch.testing.assert_close(Euler(steps)(SHRINK, GaussianPath(LinearFlow()), z, None), expected)


@pytest.mark.parametrize("steps", [1, 2, 13])
def test_ddim_with_full_noise_is_ancestral_sampling(path, steps):
    z, streams = torch.randn(4, 3, dtype=torch.float64), Streams(0, torch.arange(4))
    ddim, ddpm = (
        DDIM(steps, eta=1.0)(SHRINK, path, z, streams),
        DDPM(steps)(SHRINK, path, z, streams),
    )
    torch.testing.assert_close(ddim, ddpm, rtol=1e-8, atol=1e-8)


def test_ddim_is_equation_12_on_a_table():
    """Song et al. 2021, equations 12 and 16, for every second entry of a table of eight."""
    alpha_bar = [1.0, *torch.cumprod(1 - torch.linspace(0.05, 0.3, 8, dtype=torch.float64), 0).tolist()]
    path = GaussianPath(TableSchedule(torch.linspace(0.05, 0.3, 8, dtype=torch.float64)))
    z, streams, eta = torch.randn(4, 3, dtype=torch.float64), Streams(0, torch.arange(4)), 0.7
    expected = z
    for step, (t, s) in enumerate([(8, 6), (6, 4), (4, 2), (2, 0)]):
        clean = shrink(expected, torch.full((4,), t / 8, dtype=torch.float64))
        noise = (expected - alpha_bar[t] ** 0.5 * clean) / (1 - alpha_bar[t]) ** 0.5
        fresh = eta * ((1 - alpha_bar[s]) / (1 - alpha_bar[t]) * (1 - alpha_bar[t] / alpha_bar[s])) ** 0.5
        draw = streams.normal(f"sampler/{step}", (3,))
        expected = alpha_bar[s] ** 0.5 * clean + (1 - alpha_bar[s] - fresh**2) ** 0.5 * noise + fresh * draw
    torch.testing.assert_close(DDIM(4, eta)(SHRINK, path, z, streams), expected)


@pytest.mark.parametrize("eta", [0.0, 0.4, 1.0])
def test_euler_ancestral_is_that_of_k_diffusion(eta):
    """x = z / alpha goes down to sigma_down along the slope, and up again by fresh noise."""
    path, steps = GaussianPath(TableSchedule(scaled_linear_betas())), 6
    z, streams = torch.randn(4, 3, dtype=torch.float64), Streams(0, torch.arange(4))
    x = None
    for step, (t, s) in enumerate(trajectory(uniform_grid, steps, path, z)):
        x = z / t.alpha if x is None else x
        sigma_t, sigma_s = t.sigma / t.alpha, s.sigma / s.alpha
        up = min(sigma_s, eta * (sigma_s**2 * (sigma_t**2 - sigma_s**2) / sigma_t**2) ** 0.5)
        down = (sigma_s**2 - up**2) ** 0.5
        slope = (x - shrink(t.alpha * x, t.time)) / sigma_t
        x = x + slope * (down - sigma_t) + up * streams.normal(f"sampler/{step}", (3,)).double()
    torch.testing.assert_close(EulerAncestral(steps, eta)(SHRINK, path, z, streams), x)


def test_edm_without_churn_is_heun(path):
    z, streams = torch.randn(4, 3, dtype=torch.float64), Streams(0, torch.arange(4))
    quiet, heun = EDM(9, s_churn=0.0)(SHRINK, path, z, streams), Heun(9)(SHRINK, path, z, streams)
    assert torch.equal(quiet, heun)


def test_churn_is_that_of_algorithm_2():
    """Karras et al. 2022, in x = z / alpha, on a path whose first level has no room for churn."""
    path, steps = GaussianPath(TableSchedule(scaled_linear_betas())), 6
    sampler = EDM(steps, s_churn=1.8, s_tmin=0.3, s_tmax=9.0, s_noise=1.1, scale=signal_scale)
    z, streams, times = torch.randn(4, 3, dtype=torch.float64), Streams(0, torch.arange(4)), []

    def denoise(z: Tensor, t: Tensor) -> Tensor:
        times.append(t)
        return shrink(z, t)

    def clean(x: Tensor, sigma: float) -> Tensor:
        t = path.schedule.time(torch.full((4,), -2 * math.log(sigma), dtype=torch.float64))
        return shrink(path.schedule.alpha_sigma(t)[0][:, None] * x, t)

    pairs, churned = trajectory(sampler.grid, steps, path, z), 0
    x = z / pairs[0][0].alpha
    for step, (t, s) in enumerate(pairs):
        sigma, sigma_s = t.sigma / t.alpha, s.sigma / s.alpha
        gamma = min(1.8 / steps, math.sqrt(2) - 1) if step > 0 and 0.3 <= sigma <= 9.0 else 0.0
        churned += gamma > 0
        raised = sigma * (1 + gamma)
        x = x + (raised**2 - sigma**2) ** 0.5 * 1.1 * streams.normal(f"sampler/{step}", (3,)).double()
        slope = (x - clean(x, raised)) / raised
        end = x + (sigma_s - raised) * slope
        if sigma_s > 0:
            end = x + (sigma_s - raised) * (slope + (end - clean(end, sigma_s)) / sigma_s) / 2
        x = end
    assert 0 < churned < steps - 1
    torch.testing.assert_close(sampler(answering(denoise), path, z, streams), x, rtol=1e-9, atol=1e-9)
    assert max(float(t.max()) for t in times) == 1


def test_2m_is_algorithm_2():
    """Lu et al. 2022, with the last step of first order."""
    path, steps = GaussianPath(TableSchedule(scaled_linear_betas())), 6
    z = torch.randn(4, 3, dtype=torch.float64)
    pairs, x, before = trajectory(uniform_grid, steps, path, z), z, None
    for i, (t, s) in enumerate(pairs):
        clean, last = shrink(x, t.time), i == steps - 1
        h = math.inf if last else math.log(s.alpha / s.sigma) - math.log(t.alpha / t.sigma)
        ahead = clean
        if before is not None and not last:
            r = before[1] / h
            ahead = (1 + 1 / (2 * r)) * clean - 1 / (2 * r) * before[0]
        x, before = s.sigma / t.sigma * x - s.alpha * (math.exp(-h) - 1) * ahead, (clean, h)
    torch.testing.assert_close(DPMSolver2M(steps, grid=uniform_grid)(SHRINK, path, z, None), x)


def test_sde_form_of_2m_begins_and_ends_as_ancestral_sampling(path):
    """Its first step is of first order, which is DDPM; so is a last one after a single other."""
    z, streams = torch.randn(4, 3, dtype=torch.float64), Streams(0, torch.arange(4))
    sde, ddpm = (
        DPMSolver2M(2, 1.0, uniform_grid)(SHRINK, path, z, streams),
        DDPM(2)(SHRINK, path, z, streams),
    )
    torch.testing.assert_close(sde, ddpm, rtol=1e-9, atol=1e-9)


def test_plms_follows_the_four_weights_on_the_linear_flow():
    """dz/dt is known there: the fifth step and later extrapolate by Adams and Bashforth's weights."""
    path, steps = GaussianPath(LinearFlow()), 6
    z, calls = torch.randn(4, 3, dtype=torch.float64), []

    def denoise(z: Tensor, t: Tensor) -> Tensor:
        calls.append((z, (z - shrink(z, t)) / t[:, None]))
        return shrink(z, t)

    out = PLMS(steps)(answering(denoise), path, z, None)
    (_, u0), (_, trial), *rest = calls
    slopes, points = [u0, *[u for _, u in rest]], [z, *[y for y, _ in rest], out]
    torch.testing.assert_close(points[1], z - (u0 + trial) / 2 / steps)
    torch.testing.assert_close(points[2], points[1] - (3 * slopes[1] - slopes[0]) / 2 / steps)
    torch.testing.assert_close(points[3], points[2] - (23 * slopes[2] - 16 * slopes[1] + 5 * slopes[0]) / 12 / steps)
    for n in (3, 4, 5):
        ahead = (55 * slopes[n] - 59 * slopes[n - 1] + 37 * slopes[n - 2] - 9 * slopes[n - 3]) / 24
        torch.testing.assert_close(points[n + 1], points[n] - ahead / steps)


@pytest.mark.parametrize("name", ["heun", "plms", "edm"])
def test_signal_coordinates_need_signal(name):
    sampler = replace(SAMPLERS[name], steps=4, scale=signal_scale)
    with pytest.raises(UserError, match="needs some signal at t = 1"):
        sampler(SHRINK, GaussianPath(LinearFlow()), torch.randn(2, 3), Streams(0, torch.arange(2)))
    table = GaussianPath(TableSchedule(scaled_linear_betas()))
    assert sampler(SHRINK, table, torch.randn(2, 3), Streams(0, torch.arange(2))).isfinite().all()


@pytest.mark.parametrize("make", [DDIM, EulerAncestral, DPMSolver2M])
def test_a_negative_eta_is_refused(make):
    with pytest.raises(UserError, match=r"sampler.eta=-0.1: set it"):
        make(eta=-0.1)


# --- precision and randomness ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
def test_the_denoiser_is_asked_and_the_sample_answered_in_the_precision_of_the_latents(sampler, path, dtype):
    """Its times are not: a thousand of them cannot be told apart in bfloat16."""
    asked = []

    def watched(z: Tensor, t: Tensor) -> Tensor:
        asked.append((z.dtype, t.dtype))
        return shrink(z, t.to(z.dtype))

    z = torch.randn(2, 3, dtype=dtype)
    assert replace(sampler, steps=3)(answering(watched), path, z, Streams(0, torch.arange(2))).dtype == dtype
    assert set(asked) == {(dtype, torch.promote_types(dtype, torch.float32))}


def test_many_small_steps_are_not_lost_in_half_precision(sampler):
    """Each moves latents by less than bfloat16 resolves: rounded after every one, they would stand still."""
    path, sampler = GaussianPath(LinearFlow()), replace(sampler, steps=500)
    z, streams = torch.randn(16, 3).bfloat16(), Streams(0, torch.arange(16))

    def settled(z: Tensor, t: Tensor) -> Tensor:
        return torch.full_like(z, 0.75)

    whole = sampler(answering(settled), path, z.float(), streams)
    torch.testing.assert_close(sampler(answering(settled), path, z, streams), whole.bfloat16(), rtol=0, atol=0)


def test_single_precision_follows_double(sampler, path, data):
    z, streams, sampler = torch.randn(16, 3), Streams(0, torch.arange(16)), replace(sampler, steps=100)
    single = sampler(answering(lambda z, t: data.denoise(path)(z.double(), t.double()).float()), path, z, streams)
    double = sampler(answering(data.denoise(path)), path, z.double(), streams)
    assert single.dtype == torch.float32
    assert (single - double).abs().max() < 2e-4


@pytest.mark.parametrize("sizes", [[50, 50], [1, 33, 31, 35]], ids=str)
def test_samples_do_not_depend_on_the_batch_split_bit_for_bit(sampler, path, sizes):
    index, z, sampler = torch.arange(100) * 7919, torch.randn(100, 4, 2, 2), replace(sampler, steps=8)
    whole, order = sampler(SHRINK, path, z, Streams(3, index)), torch.randperm(100)
    rows = torch.arange(100).split(sizes)
    assert torch.equal(whole, torch.cat([sampler(SHRINK, path, z[r], Streams(3, index[r])) for r in rows]))
    assert torch.equal(whole[order], sampler(SHRINK, path, z[order], Streams(3, index[order])))


def test_global_random_state_is_neither_read_nor_changed(sampler, path):
    z, streams, sampler = torch.randn(6, 2), Streams(0, torch.arange(6)), replace(sampler, steps=5)
    before = torch.get_rng_state()
    one = sampler(SHRINK, path, z, streams)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(12345)
    assert torch.equal(sampler(SHRINK, path, z, streams), one)


@pytest.mark.parametrize("name", STOCHASTIC)
def test_every_step_but_the_last_draws_its_own_noise(name, path):
    """The last ends in clean data; churn has no room at the first and none outside its range."""
    draws = Draws(Streams(0, torch.arange(2)))
    replace(STOCHASTIC[name], steps=7)(SHRINK, path, torch.zeros(2, 5000), draws)  # too many to draw ahead
    assert len(set(draws.purposes)) == len(draws.purposes) == 6
    assert "noise" not in draws.purposes  # the prior's own draw


@pytest.mark.parametrize("name", STOCHASTIC)
def test_the_seed_chooses_the_samples_of_a_stochastic_sampler(name, path):
    z, sampler = torch.zeros(3, 2), replace(STOCHASTIC[name], steps=5)
    one, other = (sampler(SHRINK, path, z, Streams(seed, torch.arange(3))) for seed in (0, 1))
    assert not (one == other).any()


@pytest.mark.parametrize("name", DETERMINISTIC)
def test_deterministic_samplers_draw_nothing(name, path):
    draws = Draws(Streams(0, torch.arange(2)))
    replace(DETERMINISTIC[name], steps=7)(SHRINK, path, torch.zeros(2, 1), draws)
    assert not draws.purposes


# --- the adaptive solver ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", SLOPES)
def test_adaptive_solver_keeps_to_its_bound_and_inside_the_path(path, method, data):
    sampler, times = AdaptiveODE(steps=1000, method=method, rtol=1e-4, atol=1e-4), []

    def denoise(z: Tensor, t: Tensor) -> Tensor:
        times.append(t)
        return data.denoise(path)(z, t)

    assert sampler(answering(denoise), path, torch.randn(4, 3, dtype=torch.float64), None).isfinite().all()
    assert 0 < len(times) <= sampler.evaluations
    least, most = torch.stack(times).aminmax()
    assert float(most) == pytest.approx(1, abs=1e-12)
    assert most <= 1
    torch.testing.assert_close(path.schedule.log_snr(least), least.new_tensor(2 * math.log(999)))


def test_adaptive_solver_gives_up_after_its_steps(path, data):
    """And makes no more evaluations than it says."""
    calls = []

    def denoise(z: Tensor, t: Tensor) -> Tensor:
        calls.append(t)
        return data.denoise(path)(z, t)

    sampler = AdaptiveODE(steps=3, rtol=1e-9, atol=1e-9)
    with pytest.raises(UserError, match=r"sampler.steps=3 do not reach sampler.rtol=1e-09"):
        sampler(answering(denoise), path, torch.randn(4, 3, dtype=torch.float64), None)
    assert len(calls) == sampler.evaluations - 1  # all but the clean data


def test_adaptive_solver_names_its_methods():
    with pytest.raises(UserError, match=r"sampler.method=dopri is none of .*; did you mean 'dopri[58]'"):
        AdaptiveODE(method="dopri")


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
def test_adaptive_samples_are_of_the_precision_of_the_latents(path, dtype):
    sampler = AdaptiveODE() if dtype != torch.bfloat16 else AdaptiveODE(rtol=0.05, atol=0.05)
    out = sampler(SHRINK, path, torch.randn(2, 3, dtype=dtype), None)
    assert out.dtype == dtype
    assert out.isfinite().all()


def test_adaptive_samples_agree_in_any_batch_to_the_tolerance(path, data):
    """Steps are chosen for the worst sample of a batch, so every sample is as exact as asked for."""
    z, sampler = torch.randn(12, 3, dtype=torch.float64), AdaptiveODE(rtol=1e-6, atol=1e-6)
    whole = sampler(answering(data.denoise(path)), path, z, None)
    alone = torch.cat([sampler(answering(data.denoise(path)), path, row, None) for row in z.split(1)])
    assert (whole - alone).abs().max() < 1e-4


class Linear(nn.Module):
    """A denoiser with a parameter."""

    def __init__(self, path: GaussianPath) -> None:
        super().__init__()
        self.path, self.log_variance = path, nn.Parameter(torch.tensor([0.3, -0.5], dtype=torch.float64))

    def forward(self, z: Tensor, level: Level) -> Denoised:
        alpha, sigma = self.path.coefficients(level.time, z)
        variance = self.log_variance.exp()
        return Denoised(alpha * variance / (alpha**2 * variance + sigma**2) * z)


@pytest.mark.parametrize("adjoint", [False, True])
def test_gradients_through_adaptive_sampling_are_those_of_the_closed_form(path, adjoint):
    """z_0 = z_1 sqrt(v / (alpha^2 v + sigma^2)) for data N(0, v): gradients by the start and by log v."""
    denoise = Linear(path)
    z = torch.randn(5, 2, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(5, 2, dtype=torch.float64)
    sampler = AdaptiveODE(rtol=1e-7, atol=1e-7, adjoint=adjoint, last=1e-4)
    found = torch.autograd.grad((weight * sampler(denoise, path, z, None)).sum(), [z, denoise.log_variance])
    alpha, sigma = path.schedule.alpha_sigma(torch.ones((), dtype=torch.float64))
    variance = denoise.log_variance.exp()
    exact = z * (variance / (alpha**2 * variance + sigma**2)).sqrt()
    expected = torch.autograd.grad((weight * exact).sum(), [z, denoise.log_variance])
    for gradient, other in zip(found, expected, strict=True):
        torch.testing.assert_close(gradient, other, rtol=1e-5, atol=1e-5)


def test_gradients_through_fixed_steps_are_those_of_differences(path):
    """Plain autograd through the loop, against central differences of the same sampler."""
    for sampler in DETERMINISTIC.values():
        short, z = replace(sampler, steps=3), torch.randn(1, 2, dtype=torch.float64, requires_grad=True)
        assert torch.autograd.gradcheck(lambda z, short=short: short(SHRINK, path, z, None), z)


@pytest.mark.parametrize("shape", [(3,), (4, 64, 64)], ids=str)
def test_the_noise_of_a_step_is_of_its_own_stream(shape):
    """Whether several steps' are made at once or not, and whichever steps ask for some."""
    streams, z = Streams(3, torch.arange(5)), torch.zeros(5, *shape)
    noise = FreshNoise(streams, z)
    for step in (0, 1, 5, 40, 41):
        assert torch.equal(noise.add(z, 1.0, step), streams.normal(f"sampler/{step}", shape))
