"""The annealed law of times: straight lines over optimizer steps, the last values in validation, exact on resume."""

from __future__ import annotations

import pytest
import torch

from ldm_lightning.diffusion.objective import AnnealedLogitNormal, LogitNormal, Objective, Unit
from ldm_lightning.diffusion.schedule import LinearFlow
from ldm_lightning.errors import UserError
from ldm_lightning.rng import Streams

UNIFORMS = Streams(0, torch.arange(1000)).uniform("time")
FLOW = LinearFlow()


def at(step: int) -> AnnealedLogitNormal:
    law = AnnealedLogitNormal([2, 6, 16], [1.0, 0.0, -1.0], [1.0, 2.0, 0.5])
    for _ in range(step):
        law.advance()
    return law


@pytest.mark.parametrize(
    ("step", "mean", "std"),
    [(0, 1, 1), (2, 1, 1), (3, 0.75, 1.25), (6, 0, 2), (11, -0.5, 1.25), (16, -1, 0.5), (40, -1, 0.5)],
)
def test_parameters_lie_on_straight_lines_between_the_given_ones(step, mean, std):
    law = at(step)
    torch.testing.assert_close(law(UNIFORMS, FLOW), LogitNormal(mean, std)(UNIFORMS, FLOW))
    assert law(UNIFORMS, FLOW).dtype == torch.float32


@pytest.mark.parametrize("step", [0, 3, 40])
def test_validation_uses_the_last_values_at_every_step(step):
    objective = Objective(at(step), Unit()).eval()
    torch.testing.assert_close(objective.time_law(UNIFORMS, FLOW), LogitNormal(-1, 0.5)(UNIFORMS, FLOW))


def test_a_single_entry_is_the_constant_law():
    law = AnnealedLogitNormal([0], [0.3], [1.2])
    law.advance()
    torch.testing.assert_close(law(UNIFORMS, FLOW), LogitNormal(0.3, 1.2)(UNIFORMS, FLOW))


def test_the_objective_counts_optimizer_steps_and_keeps_them_in_its_state():
    objective = Objective(at(0), Unit())
    for _ in range(5):
        objective.advance()
    assert list(objective.state_dict()) == ["time_law.step"]
    restored = Objective(at(0), Unit())
    restored.load_state_dict(objective.state_dict())
    assert torch.equal(restored.time_law(UNIFORMS, FLOW), at(5)(UNIFORMS, FLOW))


@pytest.mark.parametrize(
    ("steps", "mean", "std", "words"),
    [
        ([0, 5], [0.0], [1.0, 1.0], "2, 1 and 2 entries"),
        ([], [], [], "0, 0 and 0 entries"),
        ([5, 5], [0.0, 1.0], [1.0, 1.0], "must rise"),
        ([-1, 5], [0.0, 1.0], [1.0, 1.0], "from 0 or later"),
        ([0, 5], [0.0, 1.0], [1.0, -1.0], "must not be negative"),
    ],
)
def test_impossible_courses_are_refused(steps, mean, std, words):
    with pytest.raises(UserError, match=words):
        AnnealedLogitNormal(steps, mean, std)
