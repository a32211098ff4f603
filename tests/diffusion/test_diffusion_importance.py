"""Importance sampling: exact expectations under any density, the best density, and a state that no split changes."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from ldm_lightning.diffusion.denoiser import Denoiser
from ldm_lightning.diffusion.objective import (
    DiscreteUniform,
    LogitNormal,
    LossSecondMoment,
    Objective,
    Uniform,
    Unit,
    low_discrepancy,
)
from ldm_lightning.diffusion.path import GaussianPath
from ldm_lightning.diffusion.prediction import Flow
from ldm_lightning.diffusion.schedule import LinearFlow
from ldm_lightning.errors import UserError
from ldm_lightning.rng import Streams

GRID = (torch.arange(200_000, dtype=torch.float64) + 0.5) / 200_000  # midpoints: sums over them are integrals


def learned(profile: list[float], **more: float) -> LossSecondMoment:
    """The importance after seeing the same loss in each bin again and again."""
    made = LossSecondMoment(bins=len(profile), memory=3, **more)
    centres = (torch.arange(len(profile)) + 0.5) / len(profile)
    made.observe(centres.repeat(3), torch.tensor(profile).repeat(3))
    made.advance()
    return made


@pytest.mark.parametrize("profile", [[1.0], [1.0, 1.0, 1.0], [0.1, 3.0, 0.7, 50.0], [0.0, 1.0, 0.0, 2.0, 5.0]])
@pytest.mark.parametrize("share", [0.001, 0.3, 1.0])
def test_expectations_stay_as_they_are(profile, share):
    """E[f(moved) / density] = integral of f, whatever the density; f has no symmetry and a jump inside a bin."""
    moved, weight = learned(profile, uniform_share=share)(GRID)

    def f(u: Tensor) -> Tensor:
        return torch.stack([torch.ones_like(u), u, (7 * u).sin(), (u > 0.3).double()])

    torch.testing.assert_close((weight * f(moved)).mean(1), f(GRID).mean(1), rtol=0, atol=5e-4 * max(1, float(share)))
    assert weight.max() <= 1 / share + 1e-9


def test_the_map_is_the_quantile_function_of_the_density():
    importance = learned([0.1, 3.0, 0.7, 50.0], uniform_share=0.01)
    moved, weight = importance(GRID)
    assert (moved.diff() > 0).all()
    edges = torch.arange(1, 4, dtype=torch.float64) / 4
    below = torch.stack([(moved < edge).double().mean() for edge in edges])
    torch.testing.assert_close(below, (importance.density() / 4).cumsum(0)[:-1], rtol=0, atol=1e-5)
    slope = moved.diff() / GRID.diff()  # du'/du = 1 / density, away from the edges
    inside = weight[1:] == weight[:-1]
    torch.testing.assert_close(slope[inside], weight[1:][inside], rtol=1e-6, atol=0)


def test_density_is_the_root_of_the_second_moment_with_a_uniform_share():
    profile = torch.tensor([0.5, 1.0, 4.0])
    density = learned(profile.tolist(), uniform_share=0.1).density()
    torch.testing.assert_close(density, (0.9 * profile / profile.mean() + 0.1).double())
    assert density.mean().item() == pytest.approx(1)


def test_density_converges_to_the_optimum_for_random_losses():
    """L = a(u) * noise with E[noise^2] = 1 / 3: the root of the second moment is a(u) / sqrt(3) in each bin."""
    importance = LossSecondMoment(bins=5, memory=4000, uniform_share=1e-6)
    slopes = torch.tensor([0.2, 1.0, 3.0, 0.5, 0.01])
    for step in range(60):
        streams = Streams(0, torch.arange(1000), step)
        moved, _ = importance(streams.uniform("time"))
        importance.observe(moved, slopes[(moved * 5).long()] * streams.uniform("loss"))
        importance.advance()
    torch.testing.assert_close(importance.density().float(), slopes / slopes.mean(), rtol=0.05, atol=0)


def test_the_optimum_has_the_least_variance_of_all_densities():
    """Var[L / g] is least for g ~ sqrt(E[L^2]), where it is (E sqrt(E[L^2 | u]))^2 - E[L]^2."""
    profile = [0.2, 1.0, 3.0, 0.5]
    loss = torch.tensor(profile, dtype=torch.float64)

    def second(importance: LossSecondMoment) -> float:
        moved, weight = importance(GRID)
        return float((weight * loss[(moved * 4).long()]).square().mean())

    best = second(learned(profile, uniform_share=1e-9))
    assert best == pytest.approx(float(loss.mean() ** 2), rel=1e-3)
    for other in ([1.0, 1.0, 1.0, 1.0], [0.2, 1.0, 3.0, 0.8], [0.04, 1.0, 9.0, 0.25]):
        assert second(learned(other, uniform_share=1e-9)) > best * 1.005


def test_until_all_bins_are_full_times_are_uniform():
    importance = LossSecondMoment(bins=4, memory=2)
    uniform = Streams(0, torch.arange(1000)).uniform("time")
    seen = [(torch.tensor([0.1, 0.4, 0.6, 0.9]), 4), (torch.tensor([0.1, 0.1, 0.4, 0.6]), 4)]
    for where, count in seen:
        importance.observe(where, torch.arange(1.0, count + 1))
        importance.advance()
        torch.testing.assert_close(importance(uniform), (uniform, torch.ones(1000)))
    importance.observe(torch.tensor([0.9]), torch.tensor([4.0]))
    importance.advance()
    assert not torch.allclose(importance(uniform)[0], uniform)


def test_a_bin_remembers_the_mean_square_of_as_many_losses():
    importance = LossSecondMoment(bins=1, memory=4)
    expected, losses = 0.0, [1.0, 2.0, 3.0, 5.0, 8.0, 13.0]
    for number, loss in enumerate(losses, 1):
        importance.observe(torch.tensor([0.5]), torch.tensor([loss]))
        importance.advance()
        expected += (loss**2 - expected) / min(number, 4)
        assert importance.second_moment.item() == pytest.approx(expected)
    importance.observe(torch.full((9,), 0.5), torch.full((9,), 7.0))
    importance.advance()
    assert importance.second_moment.item() == pytest.approx(49)


def test_losses_that_are_not_finite_leave_no_trace():
    """16-bit training skips a step whose loss overflows; the times must not remember it."""
    importance = learned([1.0, 2.0])
    before = copy.deepcopy(importance.state_dict())
    importance.observe(torch.tensor([0.2, 0.7]), torch.tensor([float("inf"), float("nan")]))
    importance.advance()
    torch.testing.assert_close(importance.state_dict(), before, rtol=0, atol=0)


def test_moved_numbers_lie_in_the_bin_they_are_weighted_and_counted_by():
    """With a bin a table time, as published: floor(u * bins) is the table's entry, also after rounding to float32."""
    importance = learned((torch.rand(1000) ** 4).tolist())
    uniform = torch.cat([torch.tensor([0.0, 1 - 2.0**-24]), Streams(0, torch.arange(100_000)).uniform("time")])
    moved, weight = importance(uniform)
    assert moved.dtype == weight.dtype == torch.float32
    assert moved.min() >= 0
    assert moved.max() < 1
    entry = (DiscreteUniform(1000)(moved, LinearFlow()) * 1000).round().long() - 1
    torch.testing.assert_close(weight, (1 / importance.density()[entry]).float())


@pytest.mark.parametrize("sizes", [[64], [1, 63], [20, 20, 24]])
def test_neither_order_nor_split_into_batches_changes_the_state(sizes):
    moved, loss = Streams(0, torch.arange(64)).uniform("time"), torch.rand(64)
    whole, parts = LossSecondMoment(8, 2), LossSecondMoment(8, 2)
    whole.observe(moved, loss)
    order = torch.randperm(64)
    for rows in order.split(sizes):
        parts.observe(moved[rows], loss[rows])
        torch.testing.assert_close(parts.second_moment, torch.zeros(8).double())  # nothing before the step is over
    whole.advance()
    parts.advance()
    torch.testing.assert_close(parts.state_dict(), whole.state_dict(), rtol=1e-12, atol=0)


def test_eval_mode_samples_uniformly_and_learns_nothing():
    importance = learned([1.0, 5.0]).eval()
    before = copy.deepcopy(importance.state_dict())
    uniform = torch.rand(100)
    moved, weight = importance(uniform)
    assert torch.equal(moved, uniform)
    assert torch.equal(weight, torch.ones(100))
    importance.observe(moved, torch.full((100,), 9.0))
    importance.advance()
    torch.testing.assert_close(importance.state_dict(), before, rtol=0, atol=0)


def test_evenly_spread_numbers_stay_evenly_spread_under_the_density():
    importance = learned([1.0, 9.0])
    moved, _ = importance(low_discrepancy(Streams(0, torch.arange(1000))))
    share = float(importance.density()[0] / 2)
    assert abs(float((moved < 0.5).float().mean()) - share) < 3 / 1000


@pytest.mark.parametrize("wrong", [{"bins": 0}, {"memory": 0}, {"uniform_share": 0.0}, {"uniform_share": 1.5}])
def test_impossible_numbers_are_refused(wrong):
    with pytest.raises(UserError, match=next(iter(wrong))):
        LossSecondMoment(**wrong)


class Recorder(nn.Module):
    """Answers zero and keeps the times."""

    def forward(self, z: Tensor, t: Tensor, condition: dict[str, Tensor], drop: Tensor) -> Tensor:
        self.t = t
        return torch.zeros_like(z)


@pytest.mark.parametrize("law", [Uniform(), LogitNormal(-1.0, 0.5)], ids=str)
def test_the_expected_loss_is_that_of_the_law_alone(law):
    """The error of an output of zero on z_0 = 0 is the noise's square: E[L] = 1 for any law and any importance."""
    importance = learned([0.3, 1.0, 6.0], uniform_share=0.05)
    denoiser = Denoiser(Recorder(), GaussianPath(LinearFlow()), Flow())
    index = torch.arange(40_000)

    def loss(objective: Objective) -> Tensor:
        return objective.loss(denoiser, torch.zeros(len(index), 4), {}, Streams(0, index))

    sampled = loss(Objective(law, Unit(), importance=importance))
    assert abs(sampled.mean() - 1) < 4 * sampled.std() / len(index) ** 0.5
    times = denoiser.network.t
    loss(Objective(law, Unit()))
    assert abs(times.mean() - denoiser.network.t.mean()) > 0.05  # they do go elsewhere


def test_the_objective_learns_from_its_losses_without_their_importance_weights():
    importance = LossSecondMoment(bins=1, memory=8)
    objective = Objective(Uniform(), Unit(), importance=importance)
    denoiser, z0 = Denoiser(Recorder(), GaussianPath(LinearFlow()), Flow()), torch.randn(8, 3)
    streams = Streams(0, torch.arange(8))
    losses = objective.loss(denoiser, z0, {}, streams)
    assert importance.count == 0
    objective.advance()
    torch.testing.assert_close(importance.second_moment[0].float(), losses.square().mean())
    assert "importance.second_moment" in objective.state_dict()
    objective.eval().loss(denoiser, z0, {}, streams)
    objective.advance()
    assert importance.count == 8


def test_a_restored_state_goes_on_bit_for_bit():
    def objective() -> Objective:
        return Objective(Uniform(), Unit(), importance=LossSecondMoment(4, 4))

    def run(objective: Objective, steps: range) -> Tensor:
        denoiser, losses = Denoiser(Recorder(), GaussianPath(LinearFlow()), Flow()), []
        for step in steps:
            streams = Streams(0, torch.arange(32), step)
            losses.append(objective.loss(denoiser, streams.normal("data", (3,)), {}, streams))
            objective.advance()
        return torch.cat(losses)

    whole = run(objective(), range(6))
    first, second = objective(), objective()
    halves = [run(first, range(3))]
    second.load_state_dict(copy.deepcopy(first.state_dict()))
    halves.append(run(second, range(3, 6)))
    assert torch.equal(whole, torch.cat(halves))
