"""Properties over many inputs at once: any number of steps, any guidance scale, any split, the ends of time."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from ldm_lightning.diffusion.denoised import answering
from ldm_lightning.diffusion.denoiser import Denoiser
from ldm_lightning.diffusion.guidance import ClassifierFree
from ldm_lightning.diffusion.path import GaussianPath
from ldm_lightning.diffusion.prediction import Flow, Velocity
from ldm_lightning.diffusion.schedule import LinearFlow
from ldm_lightning.rng import Streams
from tests.diffusion.conftest import ToyNetwork, level
from tests.diffusion.test_diffusion_sampler import GRIDS, SAMPLERS, SHRINK, Still


class Half(nn.Module):
    """A network of plain numbers."""

    def forward(self, z: Tensor, t: Tensor, condition: dict[str, Tensor], drop: Tensor) -> Tensor:
        return 0.5 * z


# --- numbers of steps ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", GRIDS)
def test_grids_of_every_number_of_steps_up_to_a_thousand(name, path):
    """Where samplers take n steps, every n has n of them, from 1 to 0."""
    for steps in range(1, 1001, 1 if name == "uniform" else 7):
        times = GRIDS[name](steps, path.schedule)
        assert times.shape == (steps + 1,)
        assert (times[0], times[-1]) == (1, 0)
        assert bool((times.diff() < 0).all())


@pytest.mark.parametrize("name", SAMPLERS)
def test_evaluations_of_every_small_number_of_steps(name):
    """All of them; larger ones are drawn up to 1000 in the tests of the samplers' costs."""
    path, z = GaussianPath(LinearFlow()), torch.ones(1, 1)
    for steps in range(1, 41):
        sampler, calls = replace(SAMPLERS[name], steps=steps), []

        def denoise(z: Tensor, t: Tensor, calls: list = calls) -> Tensor:
            calls.append(t)
            return 0.5 * z

        assert sampler(answering(denoise), path, z, Still()).isfinite().all()
        assert len(calls) == sampler.evaluations, steps


# --- guidance --------------------------------------------------------------------------------------------------------


@settings(deadline=None, max_examples=25)
@given(scale=st.floats(-5, 20), near=st.floats(-1e-6, 1e-6))
def test_guidance_is_a_straight_line_that_meets_its_two_ends(path, scale, near):
    denoiser, condition = Denoiser(ToyNetwork(), path, Velocity()), {"class": torch.arange(6)}
    z, t = torch.randn(6, 3, dtype=torch.float64), torch.linspace(0.1, 1, 6, dtype=torch.float64)

    def guided(scale: float) -> Tensor:
        return ClassifierFree(scale)(denoiser, condition)(z, level(t)).clean

    null, full = guided(0.0), guided(1.0)
    torch.testing.assert_close(guided(scale), null + scale * (full - null), rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(guided(near), null, rtol=0, atol=1e-4)
    torch.testing.assert_close(guided(1 + near), full, rtol=0, atol=1e-4)


# --- batches ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SAMPLERS)
@settings(deadline=None, max_examples=5)
@given(cut=st.integers(1, 12), seed=st.integers(0, 2**40), first=st.integers(0, 2**40))
def test_any_split_of_any_samples_makes_the_same_bits(name, path, cut, seed, first):
    sampler, index, z = replace(SAMPLERS[name], steps=3), torch.arange(13) + first, torch.randn(13, 2, 2, 2)
    whole = sampler(SHRINK, path, z, Streams(seed, index))
    parts = [sampler(SHRINK, path, z[r], Streams(seed, index[r])) for r in (slice(0, cut), slice(cut, 13))]
    assert torch.equal(whole, torch.cat(parts))


# --- the ends of time ------------------------------------------------------------------------------------------------

ENDS = st.one_of(st.just(1.0), st.floats(0.99, 1), st.floats(2.0**-24, 1e-2), st.just(2.0**-24))


@pytest.mark.usefixtures("allowed")
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@settings(deadline=None, max_examples=10)
@given(time=ENDS)
def test_the_denoiser_is_finite_at_the_ends_of_time(path, prediction, dtype, time):
    """Also under guidance, from noise of the size that the path has there."""
    z, t = torch.randn(3, 4).to(dtype), torch.full((3,), time, dtype=dtype)
    z = z * path.coefficients(t, z)[1]
    denoiser = Denoiser(Half(), path, prediction)
    answers = [denoiser.clean(z, t, {}), ClassifierFree(5.0)(denoiser, {})(z, level(t)).clean, denoiser.target(z, z, t)]
    assert all(bool(answer.isfinite().all()) for answer in answers)


@pytest.mark.parametrize("name", SAMPLERS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_samples_are_finite_in_either_precision(name, path, dtype):
    denoise = ClassifierFree()(Denoiser(Half(), path, Flow()), {})
    streams = Streams(0, torch.arange(2))
    for steps in (1, 2, 30):
        z = path.prior(streams, (3,)).to(dtype)
        assert replace(SAMPLERS[name], steps=steps)(denoise, path, z, streams).isfinite().all()
