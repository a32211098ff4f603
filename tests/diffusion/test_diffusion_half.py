"""Networks in half precision and in double, through denoiser, guidance, samplers, loss and likelihood."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from ldm_lightning.diffusion.denoised import answering
from ldm_lightning.diffusion.denoiser import Denoiser
from ldm_lightning.diffusion.guidance import ClassifierFree
from ldm_lightning.diffusion.likelihood import ProbabilityFlow, VariationalBound
from ldm_lightning.diffusion.objective import DiscreteUniform, Elbo, Objective, Uniform, Unit
from ldm_lightning.diffusion.path import BernoulliPath, GaussianPath
from ldm_lightning.diffusion.prediction import Bits, LearnedVariance, Velocity
from ldm_lightning.diffusion.sampler import AdaptiveODE, BernoulliAncestral, learned_variance
from ldm_lightning.diffusion.schedule import LinearFlow, TableSchedule, linear_betas
from ldm_lightning.nn import ClassVector, ConditionalNetwork, DiT, UNet
from ldm_lightning.rng import Streams
from tests.diffusion.test_diffusion_sampler import DDPM, SAMPLERS, replace

HALVES = pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
INDEX = torch.arange(2)
CONDITION = {"class": torch.tensor([0, 1])}


def network(kind: str = "unet", outputs: int = 2) -> nn.Module:
    """Random to the last layer, its weights exact in half precision."""
    backbone = (
        UNet(2, channels=(8,), blocks=1, attention=(False,), heads=1, vector_width=8, out_channels=outputs)
        if kind == "unet"
        else DiT(2, width=16, depth=1, heads=2, vector_width=8, out_channels=outputs)
    )
    whole = ConditionalNetwork(backbone, ClassVector(2, 8))
    with torch.no_grad():
        for parameter in whole.parameters():
            parameter.copy_((parameter + 0.05 * torch.randn_like(parameter)).half().bfloat16())
    return whole


def model(kind: str = "unet") -> Denoiser:
    return Denoiser(network(kind), GaussianPath(TableSchedule(linear_betas())), Velocity())


def sample(denoiser: Denoiser, sampler, z: Tensor) -> Tensor:
    with torch.no_grad():
        denoise = ClassifierFree(2.0, rescale=0.7)(denoiser, CONDITION)
        return sampler(denoise, denoiser.path, z, Streams(0, INDEX))


@pytest.mark.parametrize("name", SAMPLERS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_every_sampler_draws_from_a_network_in_the_latents_precision(name, dtype):
    """Cast as a whole, path and all."""
    denoiser, sampler, z = model(), replace(SAMPLERS[name], steps=5), torch.randn(2, 2, 4, 4).bfloat16().float()
    single, cast = sample(denoiser, sampler, z), sample(copy.deepcopy(denoiser).to(dtype), sampler, z.to(dtype))
    assert cast.dtype == dtype
    tolerance = {torch.bfloat16: 0.1, torch.float16: 0.02, torch.float64: 1e-4}[dtype]
    torch.testing.assert_close(cast.float(), single, rtol=0, atol=tolerance * float(single.std()))


@HALVES
def test_a_transformer_draws_too(dtype):
    denoiser, sampler, z = model("dit"), replace(SAMPLERS["heun"], steps=5), torch.randn(2, 2, 4, 4).bfloat16().float()
    single, cast = sample(denoiser, sampler, z), sample(copy.deepcopy(denoiser).to(dtype), sampler, z.to(dtype))
    torch.testing.assert_close(cast.float(), single, rtol=0, atol=0.1 * float(single.std()))


@HALVES
def test_a_learned_variance_draws_too(dtype):
    path, z = GaussianPath(TableSchedule(linear_betas())), torch.randn(2, 2, 4, 4).to(dtype)
    denoiser, sampler = (
        Denoiser(network(outputs=4), path, LearnedVariance(Velocity())),
        DDPM(5, variance=learned_variance),
    )
    single, cast = sample(denoiser, sampler, z.float()), sample(copy.deepcopy(denoiser).to(dtype), sampler, z)
    assert cast.dtype == dtype
    torch.testing.assert_close(cast.float(), single, rtol=0, atol=0.1 * float(single.std()))


@HALVES
def test_the_adaptive_solver_draws_to_a_tolerance_that_the_precision_has(dtype):
    denoiser, sampler, z = model(), AdaptiveODE(rtol=0.1, atol=0.1), torch.randn(2, 2, 4, 4).to(dtype)
    single, cast = sample(denoiser, sampler, z.float()), sample(copy.deepcopy(denoiser).to(dtype), sampler, z)
    assert cast.dtype == dtype
    assert (cast.float() - single).square().mean().sqrt() < 0.2 * single.std()


@HALVES
def test_bits_are_drawn_as_often_as_in_single_precision(dtype):
    """Hundreds of steps, each of which flips few bits: probabilities near 1 must not be rounded to it."""
    logits, path, streams = torch.full((256, 4), -1.0), BernoulliPath(), Streams(0, torch.arange(256))
    z = path.prior(streams, (4,))
    draws = [
        BernoulliAncestral(300)(answering(lambda z, t, kind=kind: logits.to(kind)), path, z.to(kind), streams)
        for kind in (torch.float32, dtype)
    ]
    assert draws[1].dtype == dtype
    assert torch.equal(draws[0], draws[1].float())


@HALVES
@pytest.mark.parametrize("prediction", [Velocity(), LearnedVariance(Velocity())], ids=["mean", "variance"])
def test_likelihoods_are_taken_of_it_too(dtype, prediction):
    path, streams, z0 = GaussianPath(LinearFlow()), Streams(0, INDEX), torch.randn(2, 2, 4, 4).to(dtype)
    denoiser = Denoiser(network(outputs=2 * prediction.outputs_per_channel), path, prediction)
    single, cast = (
        [
            VariationalBound(10)(denoise, path, z, streams).nats,
            ProbabilityFlow(0.05, start=0.05)(denoise, path, z, streams).nats,
        ]
        for z, own in ((z0.float(), denoiser), (z0, copy.deepcopy(denoiser).to(dtype)))
        for denoise in [ClassifierFree()(own, CONDITION)]
    )
    torch.testing.assert_close(torch.stack(cast), torch.stack(single), rtol=0.1, atol=0.05)


@HALVES
def test_it_is_trained_as_in_single_precision(dtype):
    denoiser, z0, streams = model(), torch.randn(2, 2, 4, 4).to(dtype), Streams(0, INDEX)
    for objective in (Objective(Uniform(), Unit()), Objective(DiscreteUniform(), Elbo())):
        single = objective.loss(denoiser, z0.float(), CONDITION, streams)
        cast = objective.loss(copy.deepcopy(denoiser).to(dtype), z0, CONDITION, streams)
        torch.testing.assert_close(cast.float(), single, rtol=0.05, atol=0.05)
        cast.sum().backward()


@HALVES
def test_bits_are_trained_too(dtype):
    path, z0 = BernoulliPath(), torch.ones(2, 2, 4, 4, dtype=dtype)
    denoiser = Denoiser(network(), path, Bits()).to(dtype)
    assert Objective(Uniform(), Unit()).loss(denoiser, z0, CONDITION, Streams(0, INDEX)).isfinite().all()
