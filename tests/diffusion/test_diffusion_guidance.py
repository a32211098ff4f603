"""Classifier-free guidance: its two ends, what it costs, and that it extrapolates a straight line."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from ldm_lightning.diffusion.denoiser import Denoiser
from ldm_lightning.diffusion.guidance import ClassifierFree
from ldm_lightning.diffusion.prediction import Velocity
from tests.diffusion.conftest import level

SCALES = pytest.mark.parametrize("scale", [-1.0, 0.0, 0.3, 1.0, 1.5, 7.5])


@pytest.fixture
def denoiser(network, path) -> Denoiser:
    return Denoiser(network, path, Velocity())


def question(rows: int = 40) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    z = torch.randn(rows, 3, 2, 2, generator=torch.Generator().manual_seed(5))
    return z, torch.linspace(0.1, 1, rows), {"class": torch.arange(rows) % 10}


@pytest.mark.parametrize(("scale", "drop"), [(1.0, False), (0.0, True), (1, False), (0, True)])
def test_the_two_ends_are_the_plain_models_at_the_price_of_one(denoiser, network, scale, drop):
    z, t, condition = question()
    guided = ClassifierFree(scale)(denoiser, condition)(z, level(t)).clean
    assert [len(times) for times in network.times] == [40]
    assert torch.equal(network.drops[0], torch.full((40,), drop))
    assert torch.equal(guided, denoiser.clean(z, t, condition, torch.full((40,), drop)))


@pytest.mark.parametrize("scale", [-1.0, 0.3, 7.5])
def test_guidance_is_one_call_of_twice_the_rows(denoiser, network, scale):
    z, t, condition = question()
    ClassifierFree(scale)(denoiser, condition)(z, level(t))
    assert [len(times) for times in network.times] == [80]
    assert int(network.drops[0].sum()) == 40


def test_default_is_no_guidance():
    assert ClassifierFree().scale == 1


@SCALES
def test_guidance_extrapolates_from_unconditional_to_conditional(denoiser, scale):
    z, t, condition = question()
    null, full = (ClassifierFree(end)(denoiser, condition)(z, level(t)).clean for end in (0, 1))
    assert not torch.allclose(null, full)
    expected = (1 - scale) * null + scale * full
    torch.testing.assert_close(
        ClassifierFree(scale)(denoiser, condition)(z, level(t)).clean, expected, rtol=1e-4, atol=1e-5
    )


@pytest.mark.parametrize("end", [0, 1])
def test_guidance_is_continuous_at_its_cheap_ends(denoiser, end):
    z, t, condition = question()
    near, at = (ClassifierFree(scale)(denoiser, condition)(z, level(t)).clean for scale in (end + 1e-7, end))
    torch.testing.assert_close(near, at)


@SCALES
def test_guiding_the_noise_is_the_same(denoiser, path, scale):
    """eps = (z - alpha clean) / sigma is affine in clean, and the weights 1 - scale and scale add to one."""
    z, t, condition = question()
    z, t = z.double(), t.double()
    alpha, sigma = path.coefficients(t, z)

    def noise(scale: float) -> Tensor:
        return (z - alpha * ClassifierFree(scale)(denoiser, condition)(z, level(t)).clean) / sigma

    torch.testing.assert_close(noise(scale), noise(0) + scale * (noise(1) - noise(0)), rtol=1e-9, atol=1e-9)


@SCALES
def test_guidance_does_not_depend_on_the_batch_split_bit_for_bit(denoiser, scale):
    z, t, condition = question()

    def guided(rows: slice) -> Tensor:
        return ClassifierFree(scale)(denoiser, {"class": condition["class"][rows]})(z[rows], level(t[rows])).clean

    assert torch.equal(guided(slice(40)), torch.cat([guided(slice(0, 7)), guided(slice(7, 40))]))
