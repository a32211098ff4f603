r"""Samplers against the schedulers of diffusers, evaluation by evaluation.

Both are driven by the same analytic denoiser over the same levels, in double precision as far as diffusers keeps it;
several of its schedulers round their sigmas, and the sample between steps, to float32. Compared are the latents at
every network evaluation and the final ones. The largest relative difference stays below 1e-5 for schedulers that round,
below 1e-12 for the others.

What differs by definition, and is set equal here:

- diffusers counts table entries from 0: its timestep k is time (k + 1) / T here. Its spacings ("leading", "linspace")
  do not start at pure noise; they are passed to our samplers as a grid.
- Euler, Heun and EDM there hold x = z / alpha and walk in the clock sigma / alpha: ``scale=signal_scale`` for Heun. Our
  default, flow coordinates, is that of the flow-match Heun scheduler. For Euler both are the same.
- PNDM there is the noise form, ``scale=signal_scale``, without its Runge-Kutta start-up (``skip_prk_steps``).
- The last step goes to alpha = 1: ``set_alpha_to_one``, which is not PNDM's default, or ``final_sigmas_type="zero"``.
- Nothing is clipped (``clip_sample=False``; by default DDPM and DDIM clip to [-1, 1]).
- Fresh noise is drawn by torch generators there; the numbers of our streams are handed over instead.
- Churn goes with Euler steps there (Heun's scheduler keeps gamma at 0), so the EDM sampler is compared with a
  transcription of its algorithm instead, in test_diffusion_sampler.
- DDPM adds noise of standard deviation 1e-10 in a last step that does not start at timestep 0, where we add none.
- EDM's scheduler starts at sigma = 80 of a variance-exploding path, x = z / alpha; the linear flow passes through the
  same levels, sigma / alpha = t / (1 - t), and is compared from there.

What is theirs: DDIM and PNDM take the next timestep to be k - T // n, whatever their timesteps are. Where these are
spaced otherwise ("linspace", and "trailing" where n does not divide T), they step to one level and evaluate the network
as if at another: such cases are no reference and are left out; one of them shows the difference.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from ldm_lightning.diffusion.denoised import answering
from ldm_lightning.diffusion.path import GaussianPath
from ldm_lightning.diffusion.sampler import (
    DDIM,
    DDPM,
    PLMS,
    DPMSolver2M,
    Euler,
    EulerAncestral,
    Heun,
    Sampler,
    UniPC,
    karras_grid,
    signal_scale,
)
from ldm_lightning.diffusion.schedule import LinearFlow, TableSchedule, scaled_linear_betas
from ldm_lightning.rng import Streams

diffusers = pytest.importorskip("diffusers")

BATCH = 16
TABLE = {"num_train_timesteps": 1000, "beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}


def scheduler(name: str, steps: int, **config: Any) -> Any:
    """A scheduler of diffusers on the table of latent diffusion, in double precision."""
    made = getattr(diffusers, name)(**TABLE, **config)
    made.alphas_cumprod = torch.cumprod(1 - scaled_linear_betas(), 0)
    made.set_timesteps(steps)
    return made


def times(made: Any) -> Tensor:
    """Its timesteps as times from noise down to 0, each once."""
    found = list(dict.fromkeys(made.timesteps.tolist()))
    return torch.tensor([*((k + 1) / 1000 for k in found), 0.0], dtype=torch.float64)


Clean = Callable[[Tensor, Tensor], Tensor]


def ours(sampler: Sampler, path: GaussianPath, denoise: Clean, grid: Tensor, z: Tensor, streams: Any) -> list[Tensor]:
    """The latents at every evaluation, and the final ones."""
    seen = []

    def watched(z: Tensor, t: Tensor) -> Tensor:
        seen.append(z)
        return denoise(z, t)

    final = replace(sampler, steps=len(grid) - 1, grid=lambda steps, schedule: grid)(
        answering(watched), path, z, streams
    )
    return [*seen, final]


def theirs(made: Any, path: GaussianPath, denoise: Clean, z: Tensor, **step: Any) -> list[Tensor]:
    """The same of a scheduler, told clean data or noise as its settings ask; ``step``: arguments by number."""
    x, seen = z * (z / made.scale_model_input(z, made.timesteps[0])).mean(), []
    for number, timestep in enumerate(made.timesteps):
        seen.append(made.scale_model_input(x, timestep))
        t = ((timestep.double() + 1) / 1000).expand(len(z))
        output = denoise(seen[-1], t)
        if made.config.prediction_type == "epsilon":
            alpha, sigma = path.coefficients(t, z)
            output = (seen[-1] - alpha * output) / sigma
        x = made.step(output, timestep, x, **{name: value(number) for name, value in step.items()}).prev_sample
    return [*seen, x]


def difference(one: list[Tensor], other: list[Tensor]) -> float:
    """The largest relative difference at any evaluation."""
    return max(float((a - b).abs().max() / b.abs().max()) for a, b in zip(one, other, strict=True))


@pytest.fixture
def path() -> GaussianPath:
    return GaussianPath(TableSchedule(scaled_linear_betas()))


@pytest.fixture
def z() -> Tensor:
    return torch.randn(BATCH, 3, dtype=torch.float64)


@pytest.fixture
def streams() -> Streams:
    return Streams(0, torch.arange(BATCH))


DOUBLE, SINGLE = 1e-12, 1e-5  # schedulers that keep double precision, and those that round
EVERY = ("leading", "trailing", "linspace")
ZERO = {"final_sigmas_type": "zero"}
CLEAN, NOISE = {"prediction_type": "sample"}, {"prediction_type": "epsilon"}
PNDM = NOISE | {"set_alpha_to_one": True, "skip_prk_steps": True}
CASES = {  # ours, theirs, its settings, the spacings for which it is a reference, tolerance
    "ddim": (DDIM(), "DDIMScheduler", CLEAN | {"clip_sample": False}, ("leading",), DOUBLE),
    "euler": (Euler(), "EulerDiscreteScheduler", CLEAN, EVERY, SINGLE),
    "heun": (Heun(scale=signal_scale), "HeunDiscreteScheduler", CLEAN, EVERY, SINGLE),
    "pndm": (PLMS(scale=signal_scale), "PNDMScheduler", PNDM, ("leading",), DOUBLE),
    "2m": (DPMSolver2M(), "DPMSolverMultistepScheduler", CLEAN | ZERO, EVERY, SINGLE),
    "unipc": (UniPC(), "UniPCMultistepScheduler", CLEAN | ZERO | {"solver_type": "bh2"}, EVERY, SINGLE),
}


@pytest.mark.parametrize("steps", [1, 2, 3, 10, 50])
@pytest.mark.parametrize(("name", "spacing"), [(name, spacing) for name in CASES for spacing in CASES[name][3]])
def test_deterministic_samplers(name, steps, spacing, path, data, z):
    sampler, kind, config, _, tolerance = CASES[name]
    made, denoise = scheduler(kind, steps, timestep_spacing=spacing, **config), data.denoise(path)
    other = theirs(made, path, denoise, z)
    assert difference(ours(sampler, path, denoise, times(made), z, None), other) < tolerance


@pytest.mark.parametrize("name", ["ddim", "pndm"])
def test_theirs_steps_to_other_levels_than_its_timesteps_where_they_are_uneven(name, path, data, z):
    """They take the next to be T // n further down."""
    sampler, kind, config, *_ = CASES[name]
    made, denoise = scheduler(kind, 10, timestep_spacing="linspace", **config), data.denoise(path)
    other = theirs(made, path, denoise, z)
    assert difference(ours(sampler, path, denoise, times(made), z, None), other) > 1e-3


DPM_SDE = CLEAN | ZERO | {"algorithm_type": "sde-dpmsolver++"}
STOCHASTIC = {  # ours, theirs, its settings, the argument of step that takes noise (else it is drawn inside), tolerance
    "ddpm": (DDPM(), "DDPMScheduler", CLEAN | {"clip_sample": False}, None, DOUBLE),
    "ddim_half": (DDIM(eta=0.5), "DDIMScheduler", CLEAN | {"clip_sample": False}, "variance_noise", DOUBLE),
    "ancestral": (EulerAncestral(), "EulerAncestralDiscreteScheduler", NOISE, None, SINGLE),
    "2m_sde": (DPMSolver2M(eta=1.0), "DPMSolverMultistepScheduler", DPM_SDE, "variance_noise", SINGLE),
}


@pytest.mark.parametrize("steps", [2, 10, 50])
@pytest.mark.parametrize("name", STOCHASTIC)
def test_stochastic_samplers(name, steps, path, data, z, streams, monkeypatch):
    sampler, kind, config, argument, tolerance = STOCHASTIC[name]
    made, denoise = scheduler(kind, steps, timestep_spacing="leading", **config), data.denoise(path)
    numbers = [streams.normal(f"sampler/{step}", (3,)).double() for step in range(steps)]
    arguments = {"eta": lambda step: sampler.eta} if name == "ddim_half" else {}
    if argument:
        arguments[argument] = numbers.__getitem__
    else:
        drawn, module = iter(numbers), importlib.import_module(type(made).__module__)
        monkeypatch.setattr(module, "randn_tensor", lambda *_, **__: next(drawn))
    other = theirs(made, path, denoise, z, **arguments)
    assert difference(ours(sampler, path, denoise, times(made), z, streams), other) < tolerance


@pytest.mark.parametrize("steps", [1, 10, 50])
@pytest.mark.parametrize(
    ("sampler", "kind"),
    [(Euler(), "FlowMatchEulerDiscreteScheduler"), (Heun(), "FlowMatchHeunDiscreteScheduler")],
    ids=["euler", "heun"],
)
def test_flow_matching(sampler, kind, steps, data, z):
    path, made = GaussianPath(LinearFlow()), getattr(diffusers, kind)(num_train_timesteps=1000)
    made.set_timesteps(steps)
    grid = torch.tensor(list(dict.fromkeys(made.sigmas.double().tolist())), dtype=torch.float64)
    denoise, x, seen = data.denoise(path), z, []
    for timestep in made.timesteps:
        t = (timestep.double() / 1000).expand(BATCH)
        seen.append(x)
        x = made.step((x - denoise(x, t)) / t[:, None], timestep, x).prev_sample
    assert difference(ours(sampler, path, denoise, grid, z, None), [*seen, x]) < SINGLE


@pytest.mark.parametrize("steps", [2, 10, 50])
def test_edm_euler(steps, data, z):
    path, made = GaussianPath(LinearFlow()), diffusers.EDMEulerScheduler()
    made.set_timesteps(steps)
    sigmas = made.sigmas.double()
    grid, denoise, seen = sigmas / (1 + sigmas), data.denoise(path), []
    x = z * (1 + sigmas[0])
    for number, timestep in enumerate(made.timesteps):
        made.is_scale_input_called = True  # its input scaling belongs to its own preconditioning
        seen.append(x / (1 + sigmas[number]))
        clean = denoise(seen[-1], grid[number].expand(BATCH))
        x = made.step(clean, timestep, x, pred_original_sample=clean).prev_sample
    assert difference(ours(Euler(), path, denoise, grid, z, None), [*seen, x]) < SINGLE


def test_karras_levels_are_those_of_edm():
    made = diffusers.EDMEulerScheduler(sigma_min=0.002, sigma_max=80.0, rho=7.0)
    made.set_timesteps(40)
    found = karras_grid(40, LinearFlow())
    torch.testing.assert_close((found / (1 - found))[1:], made.sigmas.double()[1:], rtol=1e-5, atol=0)
