"""The Bernoulli path by enumeration: one or two correlated bits, of which every probability is known exactly."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from ldm_lightning.diffusion.denoised import Denoised, Level, answering
from ldm_lightning.diffusion.denoiser import Denoiser
from ldm_lightning.diffusion.guidance import ClassifierFree
from ldm_lightning.diffusion.likelihood import ProbabilityFlow, VariationalBound
from ldm_lightning.diffusion.needs import Needs, check_path
from ldm_lightning.diffusion.objective import DiscreteUniform, LogitNormal, LogNormal, MinSnr, Objective, Uniform, Unit
from ldm_lightning.diffusion.path import BernoulliPath, GaussianPath, cosine_keep, linear_keep
from ldm_lightning.diffusion.prediction import Bits, Flow
from ldm_lightning.diffusion.sampler import BernoulliAncestral, Euler, Heun
from ldm_lightning.diffusion.schedule import LinearFlow
from ldm_lightning.errors import UserError
from ldm_lightning.rng import Streams
from tests.diffusion.conftest import level

KEEPS = {"linear": linear_keep, "cosine": cosine_keep}


@pytest.fixture(params=KEEPS)
def path(request: pytest.FixtureRequest) -> BernoulliPath:
    return BernoulliPath(KEEPS[request.param])


def double(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


@dataclass(frozen=True)
class BitData:
    """A distribution over all states of D bits; latents are (B, D)."""

    probabilities: tuple[float, ...]

    @property
    def states(self) -> Tensor:
        """(2^D, D)."""
        count = int(math.log2(len(self.probabilities)))
        return torch.tensor(list(itertools.product([-1.0, 1.0], repeat=count)), dtype=torch.float64)

    @property
    def p(self) -> Tensor:
        return double(*self.probabilities)

    def denoise(self, path: BernoulliPath):
        """(z_t, t) -> logits of p(z_0 = 1 | z_t) of every bit, by summing over all clean states."""

        def denoise(z: Tensor, t: Tensor) -> Tensor:
            keep = path.keep(t.double())[:, None, None]
            likelihood = ((1 + keep * z.double()[:, None] * self.states) / 2).prod(2)  # (B, states)
            weight = likelihood * self.p
            one = (weight[:, :, None] * (self.states > 0)).sum(1) / weight.sum(1, keepdim=True)
            return one.logit().to(z.dtype)

        return denoise

    def draw(self, count: int) -> Tensor:
        return self.states[torch.multinomial(self.p, count, replacement=True)]


ONE = BitData((0.3, 0.7))
TWO = BitData((0.42, 0.08, 0.15, 0.35))


def propagated(data: BitData, path: BernoulliPath, steps: int, step=BernoulliPath.step) -> Tensor:
    """The exact distribution over all states in which the sampler ends."""
    states, denoise = data.states, data.denoise(path)
    p = torch.full_like(data.p, 1 / len(data.p))
    for t, s in pairwise(torch.linspace(1, 0, steps + 1, dtype=torch.float64).tolist()):
        one = step(path, states, denoise(states, double(t).expand(len(states))), s, t)
        moves = torch.where(states[None] > 0, one[:, None], 1 - one[:, None]).prod(2)  # (from, to)
        p = p @ moves
    return p


def variation(p: Tensor, q: Tensor) -> float:
    return float((p - q).abs().sum() / 2)


# --- path ------------------------------------------------------------------------------------------------------------


def test_keep_falls_from_one_to_zero(path):
    keep = path.keep(torch.linspace(0, 1, 1001))
    assert (keep[0], keep[-1]) == (1, 0)
    assert (keep.diff() < 0).all()


def test_a_keep_that_ends_elsewhere_is_refused():
    with pytest.raises(UserError, match=r"path\.keep falls from 1 to 0\.5"):
        BernoulliPath(lambda t: 1 - t / 2)


def test_both_ends_are_exact(path):
    z0, noise = TWO.draw(1000), path.noise(Streams(0, torch.arange(1000)), (2,))
    assert torch.equal(path.corrupt(z0, torch.zeros(1000), noise), z0)
    end = path.corrupt(z0, torch.ones(1000), noise)
    assert torch.equal(end, path.corrupt(-z0, torch.ones(1000), noise))
    assert abs(end.mean()) < 4 / math.sqrt(2000)


@settings(deadline=None, max_examples=50)
@given(times=st.lists(st.floats(0.001, 0.999), min_size=1, max_size=8), name=st.sampled_from(list(KEEPS)))
def test_steps_one_by_one_are_the_closed_form(times, name):
    """Transition matrices q(z_t | z_s), written out by hand, multiply to q(z_t | z_0)."""
    path, total, s = BernoulliPath(KEEPS[name]), torch.eye(2, dtype=torch.float64), 0.0
    for t in sorted(times):
        kept = path.keep(double(t)) / path.keep(double(s))
        total = total @ (kept * torch.eye(2).double() + (1 - kept) / 2)
        s = t
    noise = torch.linspace(0, 1, 4001, dtype=torch.float64)[:-1]
    for row, clean in enumerate((-1.0, 1.0)):
        drawn = path.corrupt(torch.full((1, 4000), clean).double(), double(s), noise[None])
        assert float((drawn > 0).double().mean()) == pytest.approx(float(total[row, 1]), abs=1 / 2000)
        keep = float(path.coefficients(double(s), drawn)[0])
        assert (1 + keep * clean) / 2 == pytest.approx(float(total[row, 1]), abs=1e-12)


@pytest.mark.parametrize(("s", "t"), [(0.0, 0.3), (0.2, 0.3), (0.5, 0.9), (0.1, 1.0), (0.0, 1.0), (0.001, 0.002)])
def test_the_posterior_is_that_of_bayes(path, s, t):
    keep_s, keep_t = float(path.keep(double(s))), float(path.keep(double(t)))
    for noisy, clean in itertools.product([-1.0, 1.0], repeat=2):
        joint = {}
        for middle in (-1.0, 1.0):
            to_middle = keep_s * (middle == clean) + (1 - keep_s) / 2
            kept = keep_t / keep_s
            joint[middle] = to_middle * (kept * (noisy == middle) + (1 - kept) / 2)
        expected = joint[1.0] / sum(joint.values())
        z_t, z0 = double(noisy)[:, None], double(clean)[:, None]
        assert float(path.posterior(z_t, z0, double(s), double(t))) == pytest.approx(expected, abs=1e-9)


def test_a_certain_model_steps_by_the_posterior_and_ends_in_its_answer(path):
    z_t, z0 = TWO.draw(64), TWO.draw(64)
    s, t = double(0.4).expand(64), double(0.7).expand(64)
    torch.testing.assert_close(path.step(z_t, 1e3 * z0, 0.4, 0.7), path.posterior(z_t, z0, s, t))
    logits = torch.randn(64, 2).double()
    torch.testing.assert_close(path.step(z_t, logits, 0.0, 0.7), logits.sigmoid())


def test_the_loss_is_the_cross_entropy_in_nats(path):
    logits, z0 = torch.randn(5, 3, 2), torch.where(torch.rand(5, 3, 2) < 0.5, 1.0, -1.0)
    loss = path.loss(logits, Bits().target(z0, z0, z0))
    expected = -torch.distributions.Bernoulli(logits=logits).log_prob((z0 > 0).float())
    torch.testing.assert_close(loss, expected.mean((1, 2)))
    torch.testing.assert_close(path.loss(torch.zeros(2, 3), torch.ones(2, 3)), torch.full((2,), math.log(2)))


def test_the_loss_is_least_at_the_exact_logits(path):
    """Averaged over q(z_0 | z_t), its gradient by the logits vanishes where they are those of p(z_0 | z_t)."""
    for noisy in TWO.states:
        t = double(0.5)
        logits = TWO.denoise(path)(noisy[None], t).requires_grad_()
        weight = ((1 + path.keep(t) * noisy * TWO.states) / 2).prod(1) * TWO.p
        loss = path.loss(logits.expand(4, 2), (1 + TWO.states) / 2)
        (slope,) = torch.autograd.grad((weight / weight.sum() * loss).sum(), logits)
        assert slope.abs().max() < 1e-12


# --- sampler ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("steps", [1, 2, 7, 256])
def test_one_bit_is_exact_at_any_number_of_steps(path, steps):
    assert variation(propagated(ONE, path, steps), ONE.p) < 1e-9


def test_two_correlated_bits_are_reached_as_steps_get_many(path):
    apart = [variation(propagated(TWO, path, steps), TWO.p) for steps in (1, 4, 16, 64, 256)]
    assert apart == sorted(apart, reverse=True)
    assert apart[0] > 0.1  # independent bits
    assert apart[-1] < 0.005
    assert apart[-1] < apart[-2] / 3  # first order


def test_the_posterior_at_the_mean_would_miss_the_data(path):
    """The form of D3PM, with q(z_s | z_t, z_0) evaluated at E[z_0 | z_t], is biased already on one bit."""

    def at_the_mean(path: BernoulliPath, z_t: Tensor, logits: Tensor, s: float, t: float) -> Tensor:
        mean = 2 * logits.sigmoid() - 1
        return path.posterior(z_t, mean, double(s), double(t))

    assert variation(propagated(ONE, path, 256, at_the_mean), ONE.p) > 0.05


@pytest.mark.parametrize(("data", "steps"), [(ONE, 3), (TWO, 1), (TWO, 2), (TWO, 12)], ids=str)
def test_draws_have_the_propagated_distribution(path, data, steps):
    count = 40_000
    streams = Streams(0, torch.arange(count))
    z = path.prior(streams, data.states.shape[1:])
    drawn = BernoulliAncestral(steps)(answering(data.denoise(path)), path, z, streams)
    assert drawn.dtype == z.dtype == torch.float32
    counts = (drawn[:, None] == data.states).all(2).double().sum(0)
    p = propagated(data, path, steps)
    assert counts.sum() == count
    assert ((counts / count - p).abs() < 4.5 * (p * (1 - p) / count).sqrt()).all()


def test_a_sample_does_not_depend_on_its_batch(path):
    index = torch.arange(50)

    def draw(part: Tensor) -> Tensor:
        streams = Streams(3, part)
        return BernoulliAncestral(9)(answering(TWO.denoise(path)), path, path.prior(streams, (2,)), streams)

    assert torch.equal(draw(index), torch.cat([draw(part) for part in index.split(7)]))
    assert not torch.equal(draw(index), draw(index + 50))


class Still:
    """Stands for path and streams: a step that changes nothing and costs nothing."""

    def step(self, z: Tensor, logits: Tensor, s: float, t: float) -> Tensor:
        return logits

    def uniform(self, purpose: str, shape: tuple[int, ...]) -> Tensor:
        return HALF


HALF = torch.full((1, 1), 0.5)


@pytest.mark.slow
def test_every_number_of_steps_makes_as_many_evaluations_at_falling_times():
    for steps in (*range(1, 61), *range(61, 1001, 47)):
        times: list[Tensor] = []

        def count(z: Tensor, level: Level, times: list[Tensor] = times) -> Denoised:
            times.append(level.time)
            return Denoised(HALF)

        sampler = BernoulliAncestral(steps)
        sampler(count, Still(), HALF, Still())
        assert len(times) == sampler.evaluations == steps
        fall = torch.cat([*times, torch.zeros(1)])
        assert fall[0] == 1
        assert (fall.diff() < 0).all()


def test_no_step_is_refused(path):
    with pytest.raises(UserError, match=r"sampler\.steps=0"):
        BernoulliAncestral(0)(answering(TWO.denoise(path)), path, torch.ones(1, 2), Streams(0, torch.arange(1)))


# --- denoiser, guidance, objective -----------------------------------------------------------------------------------


class Table(nn.Module):
    """Logits by class, elementwise in z."""

    def forward(self, z: Tensor, t: Tensor, condition, drop: Tensor | None = None) -> Tensor:
        label = condition["class"] + 1.0
        if drop is not None:
            label = torch.where(drop, 0.0, label)
        return z * 0.5 + label[:, None]


def test_guidance_extrapolates_logits(path):
    denoiser, condition = Denoiser(Table(), path, Bits()), {"class": torch.tensor([0, 2])}
    z, t = torch.tensor([[1.0, -1.0], [-1.0, 1.0]]), torch.full((2,), 0.5)
    towards = denoiser.clean(z, t, condition)
    torch.testing.assert_close(towards, z * 0.5 + torch.tensor([[1.0], [3.0]]))
    guided = ClassifierFree(scale=2.5)(denoiser, condition)(z, level(t)).clean
    torch.testing.assert_close(guided, z * 0.5 + 2.5 * torch.tensor([[1.0], [3.0]]))


@pytest.mark.parametrize("law", [Uniform(), DiscreteUniform(10), LogitNormal()], ids=str)
def test_the_objective_is_the_cross_entropy_of_clean_bits(path, law):
    z0, index = TWO.draw(128).float(), torch.arange(128)
    objective = Objective(law, Unit(), condition_dropout=0.0)
    condition = {"class": torch.full((128,), -1)}
    loss = objective.loss(Denoiser(Table(), path, Bits()), z0, condition, Streams(0, index))
    t = law(Streams(0, index).uniform("time"), path.schedule)
    z_t = path.corrupt(z0, t, path.noise(Streams(0, index), (2,)))
    torch.testing.assert_close(loss, path.loss(0.5 * z_t, (1 + z0) / 2))


def test_what_asks_for_a_signal_to_noise_ratio_is_refused(path):
    denoiser, t = Denoiser(Table(), path, Bits()), torch.rand(3)
    with pytest.raises(UserError, match="signal-to-noise"):
        MinSnr()(denoiser, t)
    with pytest.raises(UserError, match="signal-to-noise"):
        LogNormal()(t, path.schedule)


# --- who is for which path -------------------------------------------------------------------------------------------


def test_parts_declare_the_paths_they_are_for(path):
    flow = GaussianPath(LinearFlow())
    check_path("sampler", BernoulliAncestral(), path)
    check_path("sampler", Heun(), flow)
    check_path("likelihood", VariationalBound(), path)
    check_path("likelihood", VariationalBound(), flow)
    with pytest.raises(UserError, match=r"Euler is for a GaussianPath.*sampler=bernoulli_ancestral"):
        check_path("sampler", Euler(), path)
    with pytest.raises(UserError, match=r"BernoulliAncestral is for a BernoulliPath.*sampler=euler"):
        check_path("sampler", BernoulliAncestral(), flow)
    with pytest.raises(UserError, match="likelihood=bound"):
        check_path("likelihood", ProbabilityFlow(), path)
    with pytest.raises(UserError, match="prediction=bits"):
        Denoiser(nn.Identity(), path, Flow())
    with pytest.raises(UserError, match="prediction=flow"):
        Denoiser(nn.Identity(), flow, Bits())


def test_what_declares_nothing_is_for_all_paths_whatever_it_annotates(path):
    class Own:
        def __call__(self, denoise, path: GaussianPath, z, streams): ...

    check_path("sampler", Own(), path)


def test_a_part_of_ones_own_is_checked_by_what_it_declares(path):
    class Own:
        needs = Needs(paths=(GaussianPath,))

    check_path("sampler", Own(), GaussianPath(LinearFlow()))
    with pytest.raises(UserError, match=r"Own is for a GaussianPath.*sampler=bernoulli_ancestral"):
        check_path("sampler", Own(), path)


# --- likelihood ------------------------------------------------------------------------------------------------------


def bound(data: BitData, path: BernoulliPath, steps: int, count: int = 4000) -> tuple[float, float]:
    """The bound's mean over noise, per dimension, each state weighted by its probability; and its standard error."""
    means, variance = [], 0.0
    for state, p in zip(data.states, data.p.tolist(), strict=True):
        z0 = state.expand(count, -1)
        nats = VariationalBound(steps)(answering(data.denoise(path)), path, z0, Streams(1, torch.arange(count))).nats
        means.append(p * float(nats.mean()))
        variance += p**2 * float(nats.var()) / count
    return sum(means), math.sqrt(variance)


def exact_bound(data: BitData, path: BernoulliPath, steps: int) -> float:
    """The same by enumeration: cross-entropy of true and model paths, one step after the other."""
    states, denoise, total = data.states, data.denoise(path), 0.0
    for k in range(steps, 0, -1):
        s, t = (k - 1) / steps, k / steps
        one = path.step(states, denoise(states, double(t).expand(len(states))), s, t)
        for z0, p0 in zip(states, data.p, strict=True):
            weight = p0 * ((1 + path.keep(double(t)) * z0 * states) / 2).prod(1)
            q = path.posterior(
                states, z0.expand_as(states), double(s).expand(len(states)), double(t).expand(len(states))
            )
            kl = torch.special.xlogy(q, q / one) + torch.special.xlogy(1 - q, (1 - q) / (1 - one))
            total += float((weight * kl.mean(1)).sum())
    return total


def test_the_bound_is_that_of_enumeration(path):
    for steps in (1, 5):
        value, error = bound(TWO, path, steps)
        assert value == pytest.approx(exact_bound(TWO, path, steps), abs=4.5 * error + 1e-9)


def test_the_bound_lies_above_the_entropy_and_comes_down_to_it(path):
    entropy = float(-(TWO.p * TWO.p.log()).sum()) / 2
    bounds = [exact_bound(TWO, path, steps) for steps in (1, 4, 16, 64, 256)]
    assert bounds == sorted(bounds, reverse=True)
    assert all(value > entropy for value in bounds)
    assert bounds[-1] - entropy < 5e-4
    assert bounds[0] - entropy > 0.05  # the correlation that one step cannot see


def test_the_bound_of_each_state_is_above_its_own_surprise(path):
    for state, p in zip(TWO.states, TWO.p.tolist(), strict=True):
        nats = VariationalBound(64)(
            answering(TWO.denoise(path)), path, state.expand(2000, -1), Streams(1, torch.arange(2000))
        ).nats
        # The model is not quite the data, so of a single state the bound is compared with the model's own probability.
        model = float(propagated(TWO, path, 64)[(TWO.states == state).all(1)])
        assert float(nats.mean()) > -math.log(model) / 2 - 4.5 * float(nats.std()) / math.sqrt(2000)
        assert float(nats.mean()) == pytest.approx(-math.log(p) / 2, abs=0.02)


def test_the_bound_of_fair_coins_is_log_two(path):
    coins = BitData((0.25,) * 4)
    result = VariationalBound(10)(
        answering(coins.denoise(path)), path, TWO.draw(4000).float(), Streams(0, torch.arange(4000))
    )
    assert result.evaluations == 10
    assert result.nats.dtype == torch.float64
    error = float(result.nats.std()) / math.sqrt(4000)
    assert float(result.nats.mean()) == pytest.approx(math.log(2), abs=4.5 * error)
    assert error < 0.01
