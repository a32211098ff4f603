from __future__ import annotations

import importlib
from dataclasses import dataclass, replace

import pytest
import torch
from torch import Tensor, nn
from torch.distributions import Normal, kl_divergence

from ldm_lightning.diffusion.denoised import Denoised, Level, answering
from ldm_lightning.diffusion.denoiser import Denoiser
from ldm_lightning.diffusion.guidance import ClassifierFree, Interval
from ldm_lightning.diffusion.learned_variance import extremes, fraction_of, step_nats
from ldm_lightning.diffusion.likelihood import VariationalBound
from ldm_lightning.diffusion.objective import DiscreteUniform, Objective, Unit, VarianceBound
from ldm_lightning.diffusion.path import GaussianPath, expand
from ldm_lightning.diffusion.prediction import Clean, Epsilon, LearnedVariance
from ldm_lightning.diffusion.sampler import DDIM, DDPM, learned_variance, uniform_grid, upper_variance
from ldm_lightning.diffusion.schedule import TableSchedule, scaled_linear_betas
from ldm_lightning.errors import UserError
from ldm_lightning.rng import Streams
from tests.conftest import TINY_LATENT_DIFFUSION, run_ldm


def times(*values: float, rows: int = 1) -> tuple[Tensor, ...]:
    return tuple(torch.full((rows,), value, dtype=torch.float64) for value in values)


def step_numbers(path: GaussianPath, s: float, t: float) -> tuple[float, ...]:
    """added, alpha_s, sigma_s, alpha_t, sigma_t."""
    ends = torch.tensor([s, t], dtype=torch.float64)
    alpha, sigma = (part.tolist() for part in path.schedule.alpha_sigma(ends))
    snr = path.schedule.log_snr(ends)
    added = float(-torch.expm1(snr[1] - snr[0]))
    return added, alpha[0], sigma[0], alpha[1], sigma[1]


@dataclass
class Isotropic:
    """z_0 ~ N(0, spread^2 I), and all there is to know about a step; the exact f is a number."""

    path: GaussianPath
    spread: float

    def clean(self, z: Tensor, t: Tensor) -> Tensor:
        alpha, sigma = self.path.coefficients(t, z)
        return self.spread**2 * alpha / (self.spread**2 * alpha**2 + sigma**2) * z

    def variance(self, s: float, t: float) -> float:
        """Of z_s given z_t, from the joint Gaussian of the two."""
        _, alpha_s, sigma_s, alpha_t, sigma_t = step_numbers(self.path, s, t)
        power_s = (self.spread * alpha_s) ** 2 + sigma_s**2
        power_t = (self.spread * alpha_t) ** 2 + sigma_t**2
        covariance = alpha_t / alpha_s * power_s
        return power_s - covariance**2 / power_t

    def fraction(self, s: float, t: float, before: float) -> float:
        lower, upper = extremes(*pairs(self.path, s, t))
        if s == 0:
            lower, _ = extremes(*pairs(self.path, t, before))
        low, high, wanted = (torch.tensor(x, dtype=torch.float64).log() for x in (lower, upper, self.variance(s, t)))
        return float((wanted - low) / (high - low))


def pairs(path: GaussianPath, s: float, t: float) -> tuple[float, tuple[float, float], tuple[float, float]]:
    added, alpha_s, sigma_s, alpha_t, sigma_t = step_numbers(path, s, t)
    return added, (alpha_s, alpha_t), (sigma_s, sigma_t)


@dataclass
class Exact:
    """A denoise function with the exact mean and variance of steps on an even grid."""

    data: Isotropic
    steps: int

    def __call__(self, z: Tensor, level: Level) -> Denoised:
        k = round(level.value * self.steps)
        s, here, before = ((k + d) / self.steps for d in (-1, 0, 1))
        fraction = torch.full_like(z, self.data.fraction(s, here, min(before, 1)))
        return Denoised(self.data.clean(z, level.time), fraction)


def test_a_step_of_a_table_lies_between_its_two_variances():
    """beta-tilde and beta of Ho et al. 2020."""
    betas = scaled_linear_betas()
    path, kept = GaussianPath(TableSchedule(betas)), torch.cumprod(1 - betas, 0)
    for k in (2, 10, 500, 1000):
        lower, upper = extremes(*pairs(path, (k - 1) / 1000, k / 1000))
        beta = float(betas[k - 1])
        assert upper == pytest.approx(beta, rel=1e-6)
        assert lower == pytest.approx(beta * float((1 - kept[k - 2]) / (1 - kept[k - 1])), rel=1e-6)


@pytest.mark.parametrize("s", [0.2, 0.5, 0.9])
def test_the_extremes_are_those_of_a_point_and_of_noise(path, s):
    lower, upper = extremes(*pairs(path, s, s + 0.1))
    assert lower == pytest.approx(Isotropic(path, 0.0).variance(s, s + 0.1), rel=1e-6)
    assert upper == pytest.approx(Isotropic(path, 1.0).variance(s, s + 0.1), rel=1e-6)
    assert 0 <= lower <= upper


def test_a_term_is_the_divergence_of_two_gaussians(path):
    z0, clean, fraction = torch.randn(3, 5, 4).double().unbind()
    s, t = 0.4, 0.5
    lower, upper = extremes(*pairs(path, s, t))
    std = torch.exp((fraction * torch.tensor(upper).log() + (1 - fraction) * torch.tensor(lower).log()) / 2)
    z_t = torch.randn_like(z0)
    (a,), (b,) = times(s), times(t)
    q, deviation = path.posterior(z_t, z0, a, b)
    p, _ = path.posterior(z_t, clean, a, b)
    wanted = kl_divergence(Normal(q, deviation), Normal(p, std)).mean(1)
    found = step_nats(path, z0, clean, fraction, times(s, t, 0.6, rows=5))
    torch.testing.assert_close(found, wanted, rtol=1e-6, atol=1e-9)


def test_the_last_term_is_a_density(path):
    z0, clean, fraction = torch.randn(3, 5, 4).double().unbind()
    lower, _ = extremes(*pairs(path, 0.1, 0.2))
    _, upper = extremes(*pairs(path, 0.0, 0.1))
    std = torch.exp((fraction * torch.tensor(upper).log() + (1 - fraction) * torch.tensor(lower).log()) / 2)
    found = step_nats(path, z0, clean, fraction, times(0.0, 0.1, 0.2, rows=5))
    torch.testing.assert_close(found, -Normal(clean, std).log_prob(z0).mean(1), rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize(("s", "t"), [(0.5, 0.6), (0.0, 0.1)])
def test_its_minimum_is_the_true_variance(path, s, t):
    """With the exact mean the expected term has no slope in f where the variance is that of z_s given z_t."""
    data = Isotropic(path, 0.7)
    fraction = torch.full((1, 1), data.fraction(s, t, t + 0.1), dtype=torch.float64, requires_grad=True)
    alpha, sigma = (float(part) for part in path.schedule.alpha_sigma(torch.tensor(t, dtype=torch.float64)))
    # E (z_0 - clean)^2: the posterior variance of z_0.
    error = data.spread**2 * sigma**2 / (data.spread**2 * alpha**2 + sigma**2)
    z0 = torch.full((1, 1), error**0.5, dtype=torch.float64)
    step_nats(path, z0, torch.zeros_like(z0), fraction, times(s, t, t + 0.1)).sum().backward()
    assert abs(float(fraction.grad)) < 1e-6


@pytest.mark.parametrize("spread", [0.5, 2.0])
@pytest.mark.parametrize("steps", [3, 10])
def test_the_bound_is_tight_however_few_the_steps(path, spread, steps):
    """Exact reverse steps of Gaussian data are Gaussian: with their variance the bound is the likelihood."""
    data, rows = Isotropic(path, spread), 20_000
    streams = Streams(0, torch.arange(rows))
    z0 = spread * torch.randn(rows, 4, dtype=torch.float64)
    found = VariationalBound(steps, uniform_grid)(Exact(data, steps), path, z0, streams).nats
    alpha, sigma = (float(part) for part in path.schedule.alpha_sigma(torch.ones((), dtype=torch.float64)))
    marginal = Normal(0.0, torch.tensor((spread**2 * alpha**2 + sigma**2) ** 0.5).double())
    floor = kl_divergence(marginal, Normal(0.0, torch.tensor((alpha**2 + sigma**2) ** 0.5).double()))
    wanted = Normal(0.0, torch.tensor(spread).double()).entropy() + floor
    assert float(found.mean() - wanted) == pytest.approx(0, abs=4 * float(found.std()) / rows**0.5)
    fixed = VariationalBound(steps, uniform_grid)(answering(data.clean), path, z0, streams).nats
    assert fixed.mean() > found.mean()


@pytest.mark.parametrize("spread", [0.5, 2.0])
def test_few_steps_reach_the_spread_of_the_data(path, spread):
    """They do not with either of the fixed variances; the last step, which has no noise, is the limit."""
    rows, steps = 100_000, 8
    data, streams = Isotropic(path, spread), Streams(0, torch.arange(rows))
    z = path.prior(streams, (1,)).double()
    alpha, sigma = path.coefficients(torch.ones(1, dtype=torch.float64), z)
    z = z * ((spread**2 * alpha**2 + sigma**2) / (alpha**2 + sigma**2)).sqrt()  # from the exact marginal
    found = DDPM(steps, variance=learned_variance)(Exact(data, steps), path, z, streams)
    # The mean of the last step alone: its variance is that of E[z_0 | z_t].
    first = 1 / steps
    alpha, sigma = (float(part) for part in path.schedule.alpha_sigma(torch.tensor(first, dtype=torch.float64)))
    wanted = spread**2 * alpha / (spread**2 * alpha**2 + sigma**2) ** 0.5
    assert float(found.std()) == pytest.approx(wanted, rel=0.01)


class Half(nn.Module):
    """Answers twice the channels, by two parameters; tells which rows it was asked for."""

    def __init__(self) -> None:
        super().__init__()
        self.weights = nn.Parameter(torch.tensor([0.3, 0.1]))

    def forward(self, z: Tensor, t: Tensor, condition: dict[str, Tensor], drop: Tensor | None = None) -> Tensor:
        label = expand(torch.where(drop, 0.0, condition["class"] + 1.0), z) if drop is not None else 0.0
        return torch.cat([self.weights[0] * z + label, self.weights[1] * z + label], dim=1)


@pytest.fixture
def denoiser() -> Denoiser:
    return Denoiser(Half(), GaussianPath(TableSchedule(scaled_linear_betas())), LearnedVariance(Epsilon()))


def test_each_half_learns_from_its_own_term(denoiser):
    z0, streams = torch.randn(8, 2, 3), Streams(0, torch.arange(8))
    objective = Objective(DiscreteUniform(), Unit(), terms={"variance": VarianceBound()})
    terms = objective.losses(denoiser, z0, {"class": torch.zeros(8)}, streams)
    (mean,) = torch.autograd.grad(terms["denoising"].value.sum(), denoiser.network.weights, retain_graph=True)
    (variance,) = torch.autograd.grad(terms["variance"].value.sum(), denoiser.network.weights)
    assert mean[0] != 0
    assert mean[1] == 0
    assert variance[0] == 0
    assert variance[1] != 0


def test_a_sum_over_the_table_is_the_bound(denoiser):
    """The mean of the term over all times is the bound of the same model, but for the prior's term."""
    steps, rows = 5, 4000
    z0, streams = torch.randn(rows, 2, 1), Streams(1, torch.arange(rows))
    condition = {"class": torch.zeros(rows)}
    term = VarianceBound(steps=steps)
    total = torch.zeros(())
    for k in range(1, steps + 1):
        at = lambda uniform, schedule, k=k: torch.full_like(uniform, k / steps)  # noqa: E731
        objective = Objective(at, Unit(), condition_dropout=0.0, terms={"variance": term})
        with torch.no_grad():
            total = total + objective.losses(denoiser, z0, condition, streams)["variance"].value.mean() / steps
    denoise = ClassifierFree(scale=1.0)(denoiser, condition)
    bound = VariationalBound(steps, uniform_grid)(denoise, denoiser.path, z0, streams).nats
    alpha, sigma = denoiser.path.schedule.alpha_sigma(torch.ones((), dtype=torch.float64))
    power = alpha**2 + sigma**2
    prior = (power / sigma**2).log() / 2 + alpha**2 * (z0.square().mean() - 1) / (2 * power)
    assert float(bound.mean() - prior) == pytest.approx(float(total), abs=5 * float(bound.std()) / rows**0.5)


@pytest.mark.parametrize("scale", [1.0, 0.0, 3.0])
def test_guidance_leaves_the_variance_alone(denoiser, scale):
    z, condition = torch.randn(4, 2, 3), {"class": torch.arange(4)}
    answer = ClassifierFree(scale=scale)(denoiser, condition)(z, Level(torch.full((4,), 0.5), 0.5))
    drop = torch.full((4,), scale == 0)
    torch.testing.assert_close(
        answer.variance_fraction, fraction_of(denoiser(z, torch.full((4,), 0.5), condition, drop))
    )


def test_limited_guidance_samples_with_it(denoiser):
    z, condition, streams = torch.randn(4, 2, 3), {"class": torch.arange(4)}, Streams(0, torch.arange(4))
    guidance, sampler = ClassifierFree(scale=3.0, interval=Interval(0.3, 0.7)), DDPM(6, variance=learned_variance)

    drawn = sampler(guidance(denoiser, condition), denoiser.path, z, streams)
    part = {"class": torch.arange(4)[2:]}
    other = sampler(guidance(denoiser, part), denoiser.path, z[2:], Streams(0, torch.arange(4)[2:]))
    torch.testing.assert_close(drawn[2:], other)


def test_other_samplers_take_the_mean(denoiser):
    z, condition = torch.randn(4, 2, 3), {"class": torch.arange(4)}
    denoise = ClassifierFree()(denoiser, condition)
    assert DDIM(5)(denoise, denoiser.path, z, Streams(0, torch.arange(4))).shape == z.shape


def test_the_upper_variance_is_noisier(path):
    data, streams = Isotropic(path, 1.0), Streams(0, torch.arange(1000))
    z = path.prior(streams, (4,)).double()
    lower, upper = (
        sampler(answering(data.clean), path, z, streams) for sampler in (DDPM(5), DDPM(5, variance=upper_variance))
    )
    assert upper.std() > lower.std()


@pytest.mark.parametrize("steps", [2, 10, 50])
def test_steps_are_those_of_diffusers(steps, monkeypatch):
    """Evaluation by evaluation, with its variance_type="learned_range"."""
    diffusers = pytest.importorskip("diffusers")
    path, streams = GaussianPath(TableSchedule(scaled_linear_betas())), Streams(0, torch.arange(6))
    table = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
    made = diffusers.DDPMScheduler(
        **table, variance_type="learned_range", clip_sample=False, timestep_spacing="leading", prediction_type="sample"
    )
    made.alphas_cumprod = torch.cumprod(1 - scaled_linear_betas(), 0)
    made.set_timesteps(steps)
    drawn = iter([streams.normal(f"sampler/{step}", (2, 3)).double() for step in range(steps)])
    monkeypatch.setattr(importlib.import_module(type(made).__module__), "randn_tensor", lambda *_, **__: next(drawn))
    network = Half().double()
    denoiser = Denoiser(network, path, LearnedVariance(Clean())).double()
    z, seen, x = torch.randn(6, 2, 3, dtype=torch.float64), [], None
    condition = {"class": torch.arange(6)}
    x = z
    with torch.no_grad():
        for timestep in made.timesteps:
            seen.append(x)
            t = ((timestep.double() + 1) / 1000).expand(6)
            x = made.step(denoiser(x, t, condition, torch.zeros(6).bool()), timestep, x).prev_sample
        grid = torch.tensor([*((k + 1) / 1000 for k in made.timesteps.tolist()), 0.0], dtype=torch.float64)
        ours = replace(DDPM(variance=learned_variance), steps=steps, grid=lambda steps, schedule: grid)
        denoise = ClassifierFree()(denoiser, condition)
        final = ours(denoise, path, z, streams)
    assert float((final - x).abs().max() / x.abs().max()) < 1e-10


def test_a_model_without_one_is_refused(path):
    streams, z = Streams(0, torch.arange(2)), torch.randn(2, 3)
    with pytest.raises(UserError, match="has not learned a variance"):
        DDPM(3, variance=learned_variance)(answering(lambda z, t: z), path, z, streams)


@pytest.mark.parametrize("settings", [{"steps": 1}, {"weight": -1.0}])
def test_impossible_terms_are_refused(settings):
    with pytest.raises(UserError, match="variance needs"):
        VarianceBound(**settings)


@pytest.mark.slow
def test_from_the_command_line(pictures, first_stage_run, tmp_path):
    run = tmp_path / "learned"
    done = run_ldm(
        "train", "data=image_folder", f"data.root={pictures}", f"first_stage.run={first_stage_run}",
        *TINY_LATENT_DIFFUSION, f"runs={tmp_path}", "name=learned", "path=scaled_linear",
        "prediction=learned_variance", "objective=hybrid", "sampler=ddpm_learned", "sampler.steps=5",
    )  # fmt: skip
    assert done.code == 0, done.err
    assert "train/variance" in (run / "metrics.csv").read_text()
    for command in (["sample", "n=2", "steps=3"], ["sample", "n=2", "sampler=ddim", "steps=3", "scale=2"]):
        done = run_ldm(command[0], f"run={run}", *command[1:])
        assert done.code == 0, done.err
    done = run_ldm("evaluate", f"run={run}", "judge=false", "n=8", "likelihood=bound", "likelihood.steps=4")
    assert done.code == 0, done.err
