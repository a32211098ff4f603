"""What all samplers keep, whatever the network: costs, times, first and last step, precision, and randomness."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from ldm_lightning.diffusion.denoiser import Denoiser
from ldm_lightning.diffusion.guidance import ClassifierFree
from ldm_lightning.diffusion.path import GaussianPath
from ldm_lightning.diffusion.prediction import Clean, Edm, Epsilon, Flow, Velocity
from ldm_lightning.diffusion.sampler import DDIM, DDPM, Euler, Heun, Sampler, time_pairs, uniform_grid
from ldm_lightning.diffusion.schedule import LinearFlow, TableSchedule, scaled_linear_betas
from ldm_lightning.errors import UserError
from ldm_lightning.rng import Streams

DETERMINISTIC = {"euler": Euler(), "heun": Heun(), "ddim": DDIM()}
STOCHASTIC = {"ddim_half": DDIM(eta=0.5), "ddim_one": DDIM(eta=1.0), "ddpm": DDPM()}
SAMPLERS = DETERMINISTIC | STOCHASTIC


@pytest.fixture(params=SAMPLERS)
def sampler(request) -> Sampler:
    return SAMPLERS[request.param]


class Still:
    """Streams of zeros, for tests that count."""

    def normal(self, purpose: str, shape: tuple[int, ...]) -> Tensor:
        return torch.zeros(1, *shape)


class Draws:
    """Streams that remember the purposes asked for."""

    def __init__(self, streams: Streams) -> None:
        self.streams, self.purposes = streams, []

    def normal(self, purpose: str, shape: tuple[int, ...]) -> Tensor:
        self.purposes.append(purpose)
        return self.streams.normal(purpose, shape)


def shrink(z: Tensor, t: Tensor) -> Tensor:
    """An elementwise denoiser, exact to the bit in any batch."""
    return z * (1 - t.view(-1, *[1] * (z.ndim - 1)) / 2) + 0.1


# --- the grid --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@settings(deadline=None, max_examples=30)
@given(steps=st.integers(1, 1000))
def test_grid_goes_strictly_from_one_to_zero_and_joins_up(dtype, steps):
    pairs = list(time_pairs(uniform_grid, steps, LinearFlow(), torch.zeros(3, 2, dtype=dtype)))
    assert len(pairs) == steps
    assert all(t.shape == s.shape == (3,) and t.dtype == s.dtype == dtype for t, s in pairs)
    assert torch.equal(pairs[0][0], torch.ones(3, dtype=dtype))
    assert torch.equal(pairs[-1][1], torch.zeros(3, dtype=dtype))
    assert all((s < t).all() for t, s in pairs)
    assert all(torch.equal(s, t) for (_, s), (t, _) in pairwise(pairs))


@settings(deadline=None, max_examples=30)
@given(steps=st.integers(1, 1000))
def test_uniform_grid_is_even_to_double_precision(steps):
    expected = [1 - step / steps for step in range(steps + 1)]
    torch.testing.assert_close(
        uniform_grid(steps, LinearFlow()), torch.tensor(expected, dtype=torch.float64), rtol=0, atol=1e-15
    )


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

    z = sampler(denoise, GaussianPath(schedule), torch.ones(1, 1), Still())
    assert len(times) == sampler.evaluations
    assert z.isfinite().all()
    assert times[0] == 1
    assert min(times) > 0
    assert times == sorted(times, reverse=True)


def test_documented_costs():
    assert [SAMPLERS[name].evaluations for name in ("euler", "ddim", "ddim_one")] == [50, 50, 50]
    assert (Heun(steps=25).evaluations, DDPM(steps=250).evaluations) == (49, 250)


@pytest.mark.parametrize("steps", [0, -3])
def test_no_steps_are_refused(sampler, path, steps):
    with pytest.raises(UserError, match=f"sampler.steps={steps}: at least one step is needed"):
        replace(sampler, steps=steps)(shrink, path, torch.zeros(1, 1), Streams(0, torch.zeros(1)))


# --- first and last step ---------------------------------------------------------------------------------------------


def test_one_step_answers_the_denoiser_at_pure_noise(sampler, path):
    z = torch.randn(5, 2, 3, dtype=torch.float64)
    out = replace(sampler, steps=1)(shrink, path, z, Streams(0, torch.arange(5)))
    torch.testing.assert_close(out, shrink(z, torch.ones(5)), rtol=0, atol=1e-12)


@pytest.mark.parametrize("steps", [1, 2, 7])
def test_the_last_step_answers_the_last_clean_data(sampler, path, steps):
    """Nothing is clipped and no noise is left: what comes out is the denoiser's last word."""
    answers = []

    def denoise(z: Tensor, t: Tensor) -> Tensor:
        answers.append(40 * shrink(z, t))
        return answers[-1]

    z = torch.randn(5, 2, dtype=torch.float64)
    out = replace(sampler, steps=steps)(denoise, path, z, Streams(0, torch.arange(5)))
    torch.testing.assert_close(out, answers[-1], rtol=1e-12, atol=1e-9)


def test_perfect_knowledge_is_kept(sampler, path):
    """A denoiser that always answers the same clean data leads there from anywhere."""
    z0 = torch.randn(4, 3, dtype=torch.float64)
    out = replace(sampler, steps=9)(lambda z, t: z0, path, torch.randn_like(z0), Streams(0, torch.arange(4)))
    torch.testing.assert_close(out, z0)


# --- one method, many names ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("steps", [1, 2, 13])
def test_euler_is_ddim_without_noise(path, steps):
    z, streams = torch.randn(4, 3, dtype=torch.float64), Streams(0, torch.arange(4))
    euler, ddim = (make(steps=steps)(shrink, path, z, streams) for make in (Euler, DDIM))
    torch.testing.assert_close(euler, ddim, rtol=1e-11, atol=1e-11)


def test_euler_on_the_linear_flow_is_a_step_along_the_velocity():
    z, steps = torch.randn(4, 3, dtype=torch.float64), 5
    expected = z
    for step in range(steps):
        t = torch.full((4,), 1 - step / steps, dtype=torch.float64)
        expected = expected - (expected - shrink(expected, t)) / t[:, None] / steps  # dz/dt = (z - z_0) / t
    torch.testing.assert_close(Euler(steps)(shrink, GaussianPath(LinearFlow()), z, None), expected)


@pytest.mark.parametrize("steps", [1, 2, 13])
def test_ddim_with_full_noise_is_ancestral_sampling(path, steps):
    z, streams = torch.randn(4, 3, dtype=torch.float64), Streams(0, torch.arange(4))
    ddim, ddpm = DDIM(steps, eta=1.0)(shrink, path, z, streams), DDPM(steps)(shrink, path, z, streams)
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
    torch.testing.assert_close(DDIM(4, eta)(shrink, path, z, streams), expected)


def test_every_prediction_makes_the_same_trajectory(sampler, path, data, signal_left):
    """A network that answers its target for the optimal clean data, guided or not, walks the same way."""
    optimal, z = data.denoise(path), torch.randn(4, 3, dtype=torch.float64)
    ends = []

    class Exact(nn.Module):
        def __init__(self, prediction: object) -> None:
            super().__init__()
            self.prediction = prediction

        def forward(self, z: Tensor, t: Tensor, condition: dict[str, Tensor], drop: Tensor) -> Tensor:
            if isinstance(self.prediction, Edm):  # asked for the scaled latents at log(sigma / alpha) / 4
                t = path.schedule.time(-8 * t)
            alpha, sigma = path.coefficients(t, z)
            if isinstance(self.prediction, Edm):
                z = z * (sigma**2 + (0.5 * alpha) ** 2).sqrt()
            clean = optimal(z, t)
            return self.prediction.target(clean, (z - alpha * clean) / sigma, alpha, sigma)

    predictions = [Clean(), Velocity(), Flow(), *([Epsilon(), Edm(0.5)] if signal_left else [])]
    for prediction in predictions:
        for scale in (1.0, 3.0):
            denoise = ClassifierFree(scale)(Denoiser(Exact(prediction), path, prediction), {})
            ends.append(replace(sampler, steps=11)(denoise, path, z, Streams(0, torch.arange(4))))
    for end in ends[1:]:
        torch.testing.assert_close(end, ends[0], rtol=1e-9, atol=1e-9)


# --- precision and randomness ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
def test_samples_are_kept_in_single_precision_at_least(sampler, path, dtype):
    """A thousand times cannot be told apart in bfloat16, nor can small steps be added."""
    z = torch.randn(2, 3, dtype=dtype)
    kept = replace(sampler, steps=3)(shrink, path, z, Streams(0, torch.arange(2)))
    assert kept.dtype == torch.promote_types(dtype, torch.float32)


def test_single_precision_follows_double(sampler, path, data):
    z, streams, sampler = torch.randn(16, 3), Streams(0, torch.arange(16)), replace(sampler, steps=100)
    single = sampler(lambda z, t: data.denoise(path)(z.double(), t.double()).float(), path, z, streams)
    double = sampler(data.denoise(path), path, z.double(), streams)
    assert single.dtype == torch.float32
    assert (single - double).abs().max() < 2e-4


@pytest.mark.parametrize("sizes", [[50, 50], [1, 33, 31, 35]], ids=str)
def test_samples_do_not_depend_on_the_batch_split_bit_for_bit(sampler, path, sizes):
    index, z, sampler = torch.arange(100) * 7919, torch.randn(100, 4, 2, 2), replace(sampler, steps=8)
    whole, order = sampler(shrink, path, z, Streams(3, index)), torch.randperm(100)
    rows = torch.arange(100).split(sizes)
    assert torch.equal(whole, torch.cat([sampler(shrink, path, z[r], Streams(3, index[r])) for r in rows]))
    assert torch.equal(whole[order], sampler(shrink, path, z[order], Streams(3, index[order])))


def test_global_random_state_is_neither_read_nor_changed(sampler, path):
    z, streams, sampler = torch.randn(6, 2), Streams(0, torch.arange(6)), replace(sampler, steps=5)
    before = torch.get_rng_state()
    one = sampler(shrink, path, z, streams)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(12345)
    assert torch.equal(sampler(shrink, path, z, streams), one)


@pytest.mark.parametrize("name", STOCHASTIC)
def test_every_step_draws_its_own_noise(name, path):
    draws = Draws(Streams(0, torch.arange(2)))
    replace(STOCHASTIC[name], steps=7)(shrink, path, torch.zeros(2, 1), draws)
    assert len(set(draws.purposes)) == len(draws.purposes) == 7
    assert "noise" not in draws.purposes  # the prior's own draw


@pytest.mark.parametrize("name", STOCHASTIC)
def test_the_seed_chooses_the_samples_of_a_stochastic_sampler(name, path):
    z, sampler = torch.zeros(3, 2), replace(STOCHASTIC[name], steps=5)
    one, other = (sampler(shrink, path, z, Streams(seed, torch.arange(3))) for seed in (0, 1))
    assert not (one == other).any()


@pytest.mark.parametrize("name", DETERMINISTIC)
def test_deterministic_samplers_draw_nothing(name, path):
    draws = Draws(Streams(0, torch.arange(2)))
    replace(DETERMINISTIC[name], steps=7)(shrink, path, torch.zeros(2, 1), draws)
    assert not draws.purposes
