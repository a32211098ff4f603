"""Terms beside the denoising error: in which space, with which minimum, and what they depend on."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from ldm_lightning.diffusion.denoiser import Denoiser
from ldm_lightning.diffusion.objective import (
    Answer,
    Contrastive,
    MinSnr,
    Objective,
    Uniform,
    Unit,
    VelocityDirection,
    total,
)
from ldm_lightning.diffusion.path import GaussianPath
from ldm_lightning.diffusion.prediction import Flow
from ldm_lightning.diffusion.sampler.flow_coordinates import scale_and_clock, velocity
from ldm_lightning.diffusion.schedule import LinearFlow
from ldm_lightning.errors import UserError
from ldm_lightning.rng import Streams

FLOW = GaussianPath(LinearFlow())


def answer(denoiser: Denoiser, output: Tensor | None = None, rows: int = 6) -> Answer:
    """Random latents at times along the whole path; an output that is off, where none is given."""
    z0, noise, error = torch.randn(3, rows, 4, 2, 3, dtype=torch.float64)
    t = torch.linspace(0.02, 1, rows, dtype=torch.float64)
    target = denoiser.target(z0, noise, t)
    return Answer(denoiser, z0, noise, t, target + error if output is None else output, target, torch.ones_like(t))


# --- direction -------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("allowed")
def test_direction_is_the_angle_of_flow_velocities_whatever_is_predicted(path, prediction):
    """By the road that samplers take: output -> clean data -> velocity in flow coordinates."""
    denoiser = Denoiser(nn.Identity(), path, prediction)
    asked = answer(denoiser)
    z = path.corrupt(asked.z0, asked.t, asked.noise)
    skip, out = prediction.coefficients(*path.coefficients(asked.t, z))
    scale, clock = scale_and_clock(path, asked.t, z)
    ours, best = velocity(z / scale, clock, skip * z + out * asked.output), asked.noise - asked.z0
    cosine = (ours * best).sum(1) / (ours.norm(dim=1) * best.norm(dim=1))
    torch.testing.assert_close(VelocityDirection()(asked), (1 - cosine).mean((1, 2)), rtol=1e-5, atol=1e-7)


def test_with_flow_prediction_it_is_the_angle_of_output_and_target():
    asked = answer(Denoiser(nn.Identity(), FLOW, Flow()))
    cosine = torch.nn.functional.cosine_similarity(asked.output, asked.target, dim=1)
    torch.testing.assert_close(VelocityDirection()(asked), (1 - cosine).mean((1, 2)))


@pytest.mark.usefixtures("allowed")
def test_direction_of_the_target_is_zero_also_next_to_clean_data(path, prediction):
    """No difference of large numbers: exact in float32 at the smallest time of training."""
    denoiser, z0, noise = Denoiser(nn.Identity(), path, prediction), torch.randn(4, 3, 5), torch.randn(4, 3, 5)
    t = torch.tensor([2.0**-24, 1e-3, 0.5, 1.0])
    target = denoiser.target(z0, noise, t)
    value = VelocityDirection()(Answer(denoiser, z0, noise, t, target, target, torch.ones(4)))
    torch.testing.assert_close(value, torch.zeros(4), rtol=0, atol=1e-6)


def test_direction_counts_the_angle_alone():
    denoiser = Denoiser(nn.Identity(), FLOW, Flow())
    target = answer(denoiser).target
    torch.manual_seed(0)
    asked = answer(denoiser)
    for scaled, value in ((3 * asked.target, 0.0), (-0.2 * asked.target, 2.0)):
        same = Answer(denoiser, asked.z0, asked.noise, asked.t, scaled, asked.target, asked.weight)
        torch.testing.assert_close(VelocityDirection()(same), torch.full((6,), value).double())
    output = torch.randn_like(target).requires_grad_()
    same = Answer(denoiser, asked.z0, asked.noise, asked.t, output, asked.target, asked.weight)
    (gradient,) = torch.autograd.grad(VelocityDirection()(same).sum(), output)
    torch.testing.assert_close((gradient * output).sum(1), torch.zeros(6, 2, 3).double(), rtol=0, atol=1e-12)
    assert gradient.abs().sum() > 0


@pytest.mark.parametrize("weight", [-1.0, float("nan"), float("inf")])
def test_an_impossible_weight_is_refused(weight):
    with pytest.raises(UserError, match=r"direction's weight=.* at least 0"):
        VelocityDirection(weight)


# --- contrastive -----------------------------------------------------------------------------------------------------


def test_the_best_output_is_the_published_one():
    """argmin of the loss = (target - lambda negative) / (1 - lambda), and it is a minimum."""
    strength, denoiser = 0.3, Denoiser(nn.Identity(), FLOW, Flow())
    asked = answer(denoiser)
    negative = asked.target.roll(-3, 0)
    best = ((asked.target - strength * negative) / (1 - strength)).requires_grad_()

    def loss(output: Tensor) -> Tensor:
        term = Contrastive(strength)
        same = Answer(denoiser, asked.z0, asked.noise, asked.t, output, asked.target, asked.weight)
        return FLOW.loss(output, asked.target) + term.weight * term(same)

    (gradient,) = torch.autograd.grad(loss(best).sum(), best)
    torch.testing.assert_close(gradient, torch.zeros_like(gradient))
    for _ in range(3):
        assert (loss(best + 0.1 * torch.randn_like(best)) > loss(best)).all()


def test_for_gaussian_data_the_minimizer_is_the_mean_target_pushed_from_the_mean_of_all():
    """Two classes with means m_0 and m_1; of the constant outputs the best a class is known in closed form."""
    strength, count = 0.2, 40_000
    label = torch.arange(count) % 2
    label = label[torch.randperm(count)]  # so the negative is of either class
    means = torch.tensor([-1.0, 2.0], dtype=torch.float64)
    z0 = means[label][:, None] + torch.randn(count, 1).double()
    output = torch.zeros(2, dtype=torch.float64, requires_grad=True)

    class Constant(nn.Module):
        def forward(self, z: Tensor, t: Tensor, condition: dict[str, Tensor], drop: Tensor) -> Tensor:
            return output[condition["class"]][:, None].expand_as(z)

    objective = Objective(Uniform(), Unit(), 0.0, terms={"contrastive": Contrastive(strength)})
    loss = objective.loss(Denoiser(Constant(), FLOW, Flow()), z0, {"class": label}, Streams(0, torch.arange(count)))
    # The loss is quadratic in each output: one Newton step finds the minimum.
    (gradient,) = torch.autograd.grad(loss.mean(), output, create_graph=True)
    curvature = torch.stack([torch.autograd.grad(g, output, retain_graph=True)[0][i] for i, g in enumerate(gradient)])
    best = -gradient / curvature
    expected = (-means + strength * means.mean()) / (1 - strength)  # the target is noise - z_0, of mean -m
    torch.testing.assert_close(best.detach(), expected, rtol=0, atol=0.05)


@pytest.mark.usefixtures("allowed")
def test_the_negative_is_the_target_of_another_sample_at_the_own_time(path, prediction):
    denoiser = Denoiser(nn.Identity(), path, prediction)
    asked = answer(denoiser)
    expected = denoiser.target(asked.z0.roll(-3, 0), asked.noise.roll(-3, 0), asked.t)
    weighted = Answer(denoiser, asked.z0, asked.noise, asked.t, asked.output, asked.target, asked.t)
    torch.testing.assert_close(Contrastive()(weighted), asked.t * path.loss(asked.output, expected))


@pytest.mark.parametrize("ranks", [2, 4])
def test_ranks_that_are_dealt_even_shares_find_the_same_negatives(ranks, network):
    """Rank r gets every W-th sample from r on, as the data module deals them."""
    objective = Objective(Uniform(), MinSnr(), terms={"contrastive": Contrastive(0.3)})
    denoiser, z0, label = Denoiser(network, FLOW, Flow()), torch.randn(16, 3), torch.arange(16)

    def losses(rows: Tensor) -> Tensor:
        return objective.loss(denoiser, z0[rows], {"class": label[rows]}, Streams(0, rows))

    whole = losses(torch.arange(16))
    for rank in range(ranks):
        rows = torch.arange(rank, 16, ranks)
        assert torch.equal(losses(rows), whole[rows])


@pytest.mark.parametrize("strength", [-0.1, 1.0, float("nan")])
def test_a_strength_without_a_minimum_is_refused(strength):
    with pytest.raises(UserError, match=r"contrastive strength=.* set it from 0 to below 1"):
        Contrastive(strength)


# --- in the objective ------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("allowed")
def test_terms_are_named_and_weighted_into_the_loss(path, prediction, network):
    denoiser, z0, streams = Denoiser(network, path, prediction), torch.randn(8, 3, 2), Streams(0, torch.arange(8))
    plain = Objective(Uniform(), MinSnr())
    more = Objective(Uniform(), MinSnr(), terms={"direction": VelocityDirection(0.7), "away": Contrastive(0.1)})
    condition = {"class": torch.arange(8)}
    terms = more.losses(denoiser, z0, condition, streams)
    assert {name: term.weight for name, term in terms.items()} == {"denoising": 1.0, "direction": 0.7, "away": -0.1}
    assert all(term.value.shape == (8,) for term in terms.values())
    expected = terms["denoising"].value + 0.7 * terms["direction"].value - 0.1 * terms["away"].value
    torch.testing.assert_close(total(terms), expected)
    assert torch.equal(more.loss(denoiser, z0, condition, streams), total(terms))
    assert torch.equal(plain.loss(denoiser, z0, condition, streams), terms["denoising"].value)


def test_direction_does_not_depend_on_the_batch_split_bit_for_bit(network):
    objective = Objective(Uniform(), Unit(), terms={"direction": VelocityDirection()})
    denoiser, z0, label = Denoiser(network, FLOW, Flow()), torch.randn(50, 4, 8, 8), torch.arange(50)

    def losses(rows: Tensor) -> Tensor:
        return objective.loss(denoiser, z0[rows], {"class": label[rows]}, Streams(0, rows))

    whole = losses(torch.arange(50))
    assert torch.equal(whole, torch.cat([losses(rows) for rows in torch.arange(50).split([1, 32, 17])]))


@pytest.mark.parametrize("name", ["denoising", "loss", "lr"])
def test_a_name_that_is_taken_is_refused(name):
    with pytest.raises(UserError, match=f"objective.terms.{name}"):
        Objective(Uniform(), Unit(), terms={name: VelocityDirection()})
