"""Self-conditioning: who gets which estimate in training and in sampling, and that nothing else changes."""

from __future__ import annotations

import math
from collections.abc import Mapping

import pytest
import torch
from torch import Tensor, nn

from ldm_lightning.diffusion.denoised import Denoised, Level
from ldm_lightning.diffusion.denoiser import Denoiser
from ldm_lightning.diffusion.guidance import Autoguidance, ClassifierFree, Interval, NegativeCondition
from ldm_lightning.diffusion.objective import Objective, Uniform, Unit
from ldm_lightning.diffusion.path import GaussianPath
from ldm_lightning.diffusion.prediction import Clean, Flow
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
)
from ldm_lightning.diffusion.schedule import LinearFlow
from ldm_lightning.diffusion.self_conditioning import ESTIMATE, Remembering, check_evaluated_once, first_estimate
from ldm_lightning.errors import UserError
from ldm_lightning.rng import Streams

PATH = GaussianPath(LinearFlow())
N = 4000


class Reader(nn.Module):
    """Elementwise, hence exact in any batch; keeps the estimates it is given."""

    def __init__(self) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.tensor(0.5))
        self.estimates: list[Tensor] = []
        self.outputs: list[Tensor] = []

    def forward(self, z: Tensor, t: Tensor, condition: Mapping[str, Tensor], drop: Tensor | None = None) -> Tensor:
        estimate = condition.get(ESTIMATE, torch.zeros_like(z))
        label = condition["class"] + 1.0
        label = label if drop is None else torch.where(drop, 0.0, label)
        self.estimates.append(estimate.clone())
        out = self.gain * z + 0.25 * estimate + label.view(-1, *[1] * (z.ndim - 1))
        self.outputs.append(out.detach())
        return out


@pytest.fixture
def reader() -> Reader:
    return Reader()


def losses(objective: Objective, denoiser: Denoiser, rows: Tensor) -> Tensor:
    streams = Streams(0, rows, 3)
    return objective.loss(denoiser, streams.normal("data", (2, 3)), {"class": rows % 5}, streams)


# --- training --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("probability", [0.25, 0.5])
def test_a_share_of_samples_gets_the_first_estimate_and_the_others_zeros(reader, probability):
    losses(
        Objective(Uniform(), Unit(), self_conditioning=probability), Denoiser(reader, PATH, Clean()), torch.arange(N)
    )
    first, second = reader.estimates
    assert not first.any()
    given = second.flatten(1).any(1)
    assert torch.equal(second[given], reader.outputs[0][given])
    assert abs(int(given.sum()) - probability * N) < 4 * math.sqrt(probability * (1 - probability) * N)
    drawn = Streams(0, torch.arange(N), 3).uniform("self_conditioning") < probability
    assert torch.equal(given, drawn)


def test_without_it_the_network_is_asked_once_and_told_nothing(reader):
    losses(Objective(Uniform(), Unit()), Denoiser(reader, PATH, Clean()), torch.arange(8))
    assert len(reader.outputs) == 1


def test_no_gradient_flows_through_the_first_estimate(reader):
    denoiser, streams = Denoiser(reader, PATH, Clean()), Streams(0, torch.arange(64))
    z, t, condition = streams.normal("z", (3,)), torch.full((64,), 0.5), {"class": torch.zeros(64)}
    estimate = first_estimate(denoiser, z, t, condition, torch.zeros(64, dtype=torch.bool))
    assert not estimate.requires_grad
    losses(Objective(Uniform(), Unit(), self_conditioning=0.5), denoiser, torch.arange(64)).mean().backward()
    gradient = reader.gain.grad.clone()

    # The same with the estimate as a given number.
    index, other = torch.arange(64), Reader()
    streams = Streams(0, index, 3)
    z0, noise, t = streams.normal("data", (2, 3)), streams.normal("noise", (2, 3)), 1 - streams.uniform("time")
    drop = streams.uniform("drop") < 0.1
    output = other(PATH.corrupt(z0, t, noise), t, {"class": index % 5, ESTIMATE: reader.estimates[-1]}, drop)
    PATH.loss(output, z0).mean().backward()
    torch.testing.assert_close(other.gain.grad, gradient)


@pytest.mark.parametrize("sizes", [[20, 20], [1, 33, 6]])
def test_losses_do_not_depend_on_the_batch_split_bit_for_bit(reader, sizes):
    objective, denoiser = Objective(Uniform(), Unit(), self_conditioning=0.5), Denoiser(reader, PATH, Flow())
    whole = losses(objective, denoiser, torch.arange(40))
    assert torch.equal(whole, torch.cat([losses(objective, denoiser, rows) for rows in torch.arange(40).split(sizes)]))


def test_mixed_precision_keeps_the_gradient():
    """Older versions of torch lose it: autocast keeps the weights that it cast in the first pass, without gradient."""

    class Linear(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(4, 4)

        def forward(self, z: Tensor, t: Tensor, condition: Mapping[str, Tensor], drop: Tensor) -> Tensor:
            out: Tensor = self.layer(z + condition.get(ESTIMATE, torch.zeros_like(z)))
            return out

    objective, network = Objective(Uniform(), Unit(), self_conditioning=0.5), Linear()
    with torch.autocast("cpu", torch.bfloat16):
        streams = Streams(0, torch.arange(8))
        loss = objective.loss(Denoiser(network, PATH, Flow()), torch.randn(8, 4), {}, streams).mean()
    loss.backward()
    assert network.layer.weight.grad is not None
    assert network.layer.weight.grad.abs().sum() > 0


@pytest.mark.parametrize("probability", [-0.1, 1.0, math.nan])
def test_a_network_that_never_starts_from_nothing_is_refused(probability):
    with pytest.raises(UserError, match=r"objective.self_conditioning=.* from 0 to below 1"):
        Objective(Uniform(), Unit(), self_conditioning=probability)


# --- sampling --------------------------------------------------------------------------------------------------------


SAMPLERS: dict[str, Sampler] = {
    "euler": Euler(4),
    "heun": Heun(3),
    "ddim": DDIM(4, eta=0.5),
    "ddpm": DDPM(4),
    "plms": PLMS(4),
    "rk4": RK4(2),
    "edm": EDM(3),
    "dpm": DPMSolver2M(4),
    "unipc": UniPC(4),
    "ancestral": EulerAncestral(4),
}


def draw(denoiser: Denoiser, guidance, sampler: Sampler, rows: Tensor, answers: list[Tensor] | None = None) -> Tensor:
    """As the training module does it; what the sampler is answered goes to ``answers``."""
    streams = Streams(5, rows)
    z = PATH.prior(streams, (2, 3))
    denoise = Remembering(guidance(denoiser, {"class": rows % 5}))

    def noted(z: Tensor, level: Level) -> Denoised:
        answer = denoise(z, level)
        if answers is not None:
            answers.append(answer.clean)
        return answer

    with torch.no_grad():
        return sampler(noted, PATH, z, streams)


GUIDANCES = {
    "plain": ClassifierFree(1.0),
    "null": ClassifierFree(0.0),
    "free": ClassifierFree(3.0),
    "rescaled": ClassifierFree(3.0, rescale=0.7),
    "limited": ClassifierFree(3.0, interval=Interval(0.3, 0.8)),
    "negative": NegativeCondition(3.0, {"class": 2}),
}


@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("guidance", GUIDANCES)
def test_every_evaluation_builds_on_the_guided_answer_before(reader, sampler, guidance):
    answers: list[Tensor] = []
    draw(Denoiser(reader, PATH, Flow()), GUIDANCES[guidance], SAMPLERS[sampler], torch.arange(6), answers)
    assert len(answers) == len(reader.estimates) == SAMPLERS[sampler].evaluations
    for before, estimate in zip([torch.zeros(6, 2, 3), *answers], reader.estimates, strict=False):
        for part in estimate.split(6):  # both halves of a guided batch
            assert torch.equal(part, before)
    assert {len(estimate) for estimate in reader.estimates} <= ({6} if guidance in ("plain", "null") else {6, 12})


@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("guidance", GUIDANCES)
def test_a_sample_does_not_depend_on_the_batch_split_bit_for_bit(reader, sampler, guidance):
    denoiser = Denoiser(reader, PATH, Flow())

    def drawn(rows: Tensor) -> Tensor:
        return draw(denoiser, GUIDANCES[guidance], SAMPLERS[sampler], rows)

    whole = drawn(torch.arange(9))
    assert torch.equal(whole, torch.cat([drawn(rows) for rows in torch.arange(9).split([1, 6, 2])]))


@pytest.mark.parametrize("scale", [0.0, 2.0])
def test_autoguidance_tells_both_models_the_guided_estimate(reader, scale):
    other, answers = Reader(), []
    draw(
        Denoiser(reader, PATH, Flow()),
        Autoguidance(Denoiser(other, PATH, Flow()), scale),
        Euler(4),
        torch.arange(3),
        answers,
    )
    for before, estimate in zip([torch.zeros(3, 2, 3), *answers], other.estimates, strict=False):
        assert torch.equal(estimate, before)
    assert len(reader.estimates) == (0 if scale == 0 else 4)


def test_a_network_that_does_not_read_the_estimate_does_not_notice(network):
    denoiser, rows = Denoiser(network, PATH, Flow()), torch.arange(4)
    streams = Streams(5, rows)
    z = PATH.prior(streams, (2, 3))
    plain = Euler(4)(ClassifierFree(2.0)(denoiser, {"class": rows % 5}), PATH, z, streams)
    assert torch.equal(draw(denoiser, ClassifierFree(2.0), Euler(4), rows), plain)


def test_an_adaptive_solver_is_refused():
    for sampler in SAMPLERS.values():
        check_evaluated_once(sampler)
    with pytest.raises(UserError, match="choose another sampler, such as heun"):
        check_evaluated_once(AdaptiveODE())
