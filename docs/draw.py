"""The pictures and the figures of docs/choosing.md, all made by the library: ``python docs/draw.py [FOLDER]``.

Data are toys whose best denoiser is known in closed form: a mixture of Gaussians in the plane, to look at, and sixteen
Gaussian dimensions of falling deviation (1.3 / k), of which the distance between samples and data is exact.
"""

from __future__ import annotations

import csv
import math
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import matplotlib as mpl
import torch
from torch import Tensor, nn

mpl.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.axes import Axes

from ldm_lightning.diffusion import objective as obj
from ldm_lightning.diffusion import sampler as smp
from ldm_lightning.diffusion import schedule as sch
from ldm_lightning.diffusion.denoised import Denoise, Denoised, Level, answering
from ldm_lightning.diffusion.denoiser import Denoiser
from ldm_lightning.diffusion.likelihood import ProbabilityFlow, VariationalBound
from ldm_lightning.diffusion.path import GaussianPath
from ldm_lightning.diffusion.prediction import Epsilon
from ldm_lightning.rng import Streams

# Okabe and Ito's colours, which can be told apart in any kind of colour vision.
COLOURS = ["#000000", "#E69F00", "#56B4E9", "#009E73", "#0072B2", "#D55E00", "#CC79A7", "#8A8A8A"]
STYLE = {
    "font.size": 9,
    "axes.titlesize": 9,
    "legend.frameon": False,
    "legend.fontsize": 8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.prop_cycle": mpl.cycler(color=COLOURS),
    "figure.constrained_layout.use": True,
    "figure.dpi": 110,
    "lines.linewidth": 1.6,
}

TABLES = {
    "linear": sch.TableSchedule(sch.linear_betas()),
    "scaled_linear": sch.TableSchedule(sch.scaled_linear_betas()),
    "cosine": sch.TableSchedule(sch.cosine_betas()),
    "sigmoid": sch.TableSchedule(sch.sigmoid_betas()),
    "laplace": sch.TableSchedule(sch.laplace_betas()),
    "zero_snr": sch.TableSchedule(sch.zero_terminal_snr(sch.scaled_linear_betas())),
    "shifted_cosine": sch.Shifted(sch.TableSchedule(sch.cosine_betas()), 2.0),
}
CLOSED_FORMS = {
    "linear_flow": sch.LinearFlow(),
    "shifted_linear_flow": sch.Shifted(sch.LinearFlow(), 3.0),
    "trigonometric": sch.Trigonometric(),
    "vp": sch.VariancePreserving(),
    "edm": sch.VarianceExploding(),
}
SCHEDULES = TABLES | CLOSED_FORMS

LAWS = {
    "Uniform": obj.Uniform(),
    "LogitNormal(0, 1)": obj.LogitNormal(),
    "LogitNormal(-0.5, 1)": obj.LogitNormal(-0.5),
    "LogNormal(-0.5, 1.2)": obj.LogNormal(-0.5),
    "LogNormal(-1.2, 1.2)": obj.LogNormal(),
}
TRAINED = {  # what a law means on a path: how often each log-SNR is trained
    "uniform, linear_flow": (obj.Uniform(), "linear_flow"),
    "flow, linear_flow": (obj.LogitNormal(), "linear_flow"),
    "flow, shifted_linear_flow": (obj.LogitNormal(), "shifted_linear_flow"),
    "uniform, scaled_linear": (obj.Uniform(), "scaled_linear"),
    "uniform, cosine": (obj.Uniform(), "cosine"),
    "uniform, laplace": (obj.Uniform(), "laplace"),
    "edm, edm": (obj.LogNormal(-0.5), "edm"),
}
WEIGHTINGS = {
    "unit (epsilon)": obj.Unit(),
    "min_snr": obj.MinSnr(),
    "soft_min_snr": obj.SoftMinSnr(),
    "p2": obj.P2(),
    "edm": obj.EdmWeight(1.0),
    "elbo": obj.Elbo(),
    "sigmoid": obj.Sigmoid(),
}

DETERMINISTIC = {
    "euler, ddim": smp.Euler(),
    "heun": smp.Heun(),
    "dpm_solver_2m": smp.DPMSolver2M(),
    "unipc": smp.UniPC(),
    "plms": smp.PLMS(),
    "rk4": smp.RK4(),
}
STOCHASTIC = {
    "ddpm, euler_ancestral": smp.DDPM(),
    "ddim eta=0.5": smp.DDIM(eta=0.5),
    "dpm_solver_2m_sde": smp.DPMSolver2M(eta=1.0),
    "edm, s_churn=10": smp.EDM(s_churn=10.0),
}
GRIDS = {
    "uniform": smp.uniform_grid,
    "quadratic": smp.quadratic_grid,
    "flow": smp.flow_grid,
    "karras": smp.karras_grid,
    "log_snr": smp.log_snr_grid,
}
BUDGETS = (4, 6, 8, 12, 16, 24, 32, 48, 64, 96)  # network evaluations


# --- toys ------------------------------------------------------------------------------------------------------------

CENTRES = 1.6 * torch.tensor([[math.sin(2 * math.pi * k / 5), math.cos(2 * math.pi * k / 5)] for k in range(5)])
WIDTH = 0.15
DEVIATIONS = 1.3 / torch.arange(1, 17, dtype=torch.float64)


def mixture_denoiser(path: GaussianPath) -> Denoise:
    """(z_t, t) -> E[z_0 | z_t] of five Gaussians in the plane."""

    def denoise(z: Tensor, t: Tensor) -> Tensor:
        alpha, sigma = path.coefficients(t, z)
        variance = (alpha * WIDTH) ** 2 + sigma**2
        centres = CENTRES.to(z.dtype)
        away = z[:, None] - alpha[:, None] * centres
        share = (-away.square().sum(-1) / (2 * variance)).softmax(-1)
        return ((share @ centres) * sigma**2 + alpha * WIDTH**2 * z) / variance

    return answering(denoise)


def gaussian_denoiser(path: GaussianPath) -> Denoise:
    """(z_t, t) -> E[z_0 | z_t] of independent Gaussian dimensions."""

    def denoise(z: Tensor, t: Tensor) -> Tensor:
        alpha, sigma = path.coefficients(t, z)
        return alpha * DEVIATIONS**2 / ((alpha * DEVIATIONS) ** 2 + sigma**2) * z

    return answering(denoise)


class _Unit:
    """Streams for a row a source of randomness: row k + 1 has noise 1 at step k, and no other has."""

    def __init__(self, rows: int) -> None:
        self.rows = rows

    def normals(self, purposes: Sequence[str], shape: tuple[int, ...]) -> Tensor:
        rows = torch.arange(self.rows) - 1
        steps = torch.tensor([int(purpose.removeprefix("sampler/")) for purpose in purposes])
        ones = (rows == steps[:, None]).double()
        return ones.view(*ones.shape, *[1] * len(shape)).expand(*ones.shape, *shape)


def distance(sampler: smp.Sampler, path: GaussianPath) -> float:
    """Exact Wasserstein-2 distance of the samples to the sixteen dimensions, per root mean square of the data.

    Dimensions are independent and everything is linear: variances add over the start and the noise of every step.
    """
    alpha, sigma = path.schedule.alpha_sigma(torch.ones((), dtype=torch.float64))
    z = torch.zeros(sampler.steps + 1, 16, dtype=torch.float64)
    z[0] = ((alpha * DEVIATIONS) ** 2 + sigma**2).sqrt()
    out = sampler(gaussian_denoiser(path), path, z, _Unit(len(z)))  # type: ignore[arg-type]
    return float((out.square().sum(0).sqrt() - DEVIATIONS).norm() / DEVIATIONS.norm())


def within(sampler: smp.Sampler, budget: int) -> smp.Sampler | None:
    """The sampler with as many steps as the evaluations allow; None if they do not come close to the budget."""
    counts = [replace(sampler, steps=n) for n in range(1, budget + 1)]  # type: ignore[type-var]
    best = max((one for one in counts if one.evaluations <= budget), key=lambda one: one.evaluations, default=None)
    return best if best and best.evaluations > 0.7 * budget else None


# --- pictures --------------------------------------------------------------------------------------------------------


def schedules(folder: Path) -> None:
    """alpha, sigma and log-SNR of every schedule."""
    figure, axes = plt.subplots(2, 3, figsize=(9, 5), sharex=True)
    t = torch.linspace(0, 1, 801, dtype=torch.float64)
    for row, group in zip(axes, (TABLES, CLOSED_FORMS), strict=True):
        for name, schedule in group.items():
            for panel, curve in zip(row, (*schedule.alpha_sigma(t), schedule.log_snr(t)), strict=True):
                panel.plot(t, curve, label=name)
        for panel, title in zip(
            row, (r"signal $\alpha(t)$", r"noise $\sigma(t)$", r"$\log\,\alpha^2/\sigma^2$"), strict=True
        ):
            panel.set(title=title, ylim=(-0.02, 1.05))
        row[2].set(ylim=(-14, 14))
        row[2].legend(loc="center left", bbox_to_anchor=(1.02, 0.5))
    axes[1, 1].text(0.42, 0.03, "edm goes on to 80", fontsize=8, color=COLOURS[4])
    for panel in axes[1]:
        panel.set_xlabel("t")
    save(figure, folder / "schedules.png")


UNIFORM = (torch.arange(20000, dtype=torch.float64) + 0.5) / 20000


def times(folder: Path) -> None:
    """Which times a law trains, which log-SNR that is, and what weights count."""
    figure, (first, second, third) = plt.subplots(1, 3, figsize=(11, 4.1))
    for name, law in LAWS.items():
        t, density = quantiles(law(UNIFORM, sch.LinearFlow()))
        first.plot(t, density, label=name)
    first.set(title="time laws on linear_flow", xlabel="t", ylabel="density", ylim=(0, 3.2), xlim=(0, 1))
    for name, (law, path) in TRAINED.items():
        t = law(UNIFORM, SCHEDULES[path])
        log_snr, density = quantiles(SCHEDULES[path].log_snr(t))
        second.plot(log_snr, density, label=name)
    second.set(
        title="trained log-SNR (objective, path)", xlabel="log-SNR", ylabel="density", xlim=(-12, 12), ylim=(0, 0.42)
    )
    denoiser = Denoiser(nn.Identity(), GaussianPath(SCHEDULES["scaled_linear"]), Epsilon())
    t = torch.linspace(0.002, 1, 600, dtype=torch.float64)
    for name, weighting in WEIGHTINGS.items():
        weight = weighting(denoiser, t)
        third.plot(SCHEDULES["scaled_linear"].log_snr(t), weight / weight.mean(), label=name)
    third.set(
        title="weights of epsilon's error (scaled_linear)",
        xlabel="log-SNR",
        ylabel="weight / mean",
        yscale="log",
        ylim=(0.03, 30),
    )
    for panel in (first, second, third):
        panel.legend(loc="upper center", bbox_to_anchor=(0.5, -0.2), ncols=1)
    save(figure, folder / "times.png")


def quantiles(values: Tensor) -> tuple[Tensor, Tensor]:
    """Where a distribution lies and its density there, from its quantiles at even probabilities."""
    values = values.sort().values[::50]
    values = values[torch.cat([torch.tensor([True]), values.diff() > 1e-6])]  # many at t = 1 are one
    return (values[1:] + values[:-1]) / 2, 50 / 20000 / values.diff()


def trajectories(folder: Path) -> None:
    """The way of a few samples under every sampler; each dot is one question to the network."""
    path = GaussianPath(SCHEDULES["linear_flow"])
    data = CENTRES.repeat(300, 1) + WIDTH * Streams(1, torch.arange(1500)).normal("data", (2,))
    figure, axes = plt.subplots(2, 5, figsize=(11, 4.9), sharex=True, sharey=True)
    streams = Streams(4, torch.arange(7))
    start = path.prior(streams, (2,)).double()
    for panel, (name, sampler) in zip(axes.flat, (DETERMINISTIC | STOCHASTIC).items(), strict=True):
        chosen = within(sampler, 16)
        asked: list[Tensor] = []

        def denoise(z: Tensor, level: Level, asked: list[Tensor] = asked) -> Denoised:
            asked.append(z)
            return mixture_denoiser(path)(z, level)

        end = chosen(denoise, path, start, streams)
        panel.scatter(*data.T, s=2, color="#D5D5D5", linewidths=0)
        panel.scatter(*start.T, s=18, facecolors="none", edgecolors=COLOURS[: len(start)], linewidths=0.9, zorder=3)
        for sample, way in enumerate(torch.stack([*asked, end], 1)):
            panel.plot(*way.T, color=COLOURS[sample], linewidth=0.9, marker="o", markersize=2)
            panel.plot(*way[-1], color=COLOURS[sample], marker="o", markersize=5)
        panel.set(title=f"{name} ({len(asked)})", aspect="equal", xlim=(-2.6, 2.6), ylim=(-2.6, 2.6))
    save(figure, folder / "trajectories.png")


def errors(folder: Path) -> None:
    """Error against the number of network evaluations."""
    path = GaussianPath(SCHEDULES["linear_flow"])
    figure, (single, flow, fresh) = plt.subplots(1, 3, figsize=(11, 4.3))
    z = path.prior(Streams(0, torch.arange(500)), (2,)).double()
    denoise = mixture_denoiser(path)
    exact = smp.RK4(500)(denoise, path, z, Streams(0, torch.arange(500)))
    for name, sampler in DETERMINISTIC.items():
        points = [(one.evaluations, end_error(one, denoise, path, z, exact)) for one in affordable(sampler)]
        single.plot(*zip(*points, strict=True), marker="o", markersize=3, label=name)
    single.plot(*zip(*adaptive(denoise, path, z, exact), strict=True), marker="s", markersize=3, label="adaptive")
    for panel, group in ((flow, DETERMINISTIC), (fresh, STOCHASTIC)):
        for name, sampler in group.items():
            points = [(one.evaluations, distance(one, path)) for one in affordable(sampler)]
            panel.plot(*zip(*points, strict=True), marker="o", markersize=3, label=name)
    single.set(title="mixture in the plane: error of the ends", ylabel="root mean square")
    flow.set(title="16 dimensions: distribution, deterministic", ylabel="relative Wasserstein-2 distance")
    fresh.set(title="16 dimensions: distribution, stochastic")
    for panel in (single, flow, fresh):
        logarithmic(panel, "network evaluations")
        panel.legend(loc="upper center", bbox_to_anchor=(0.5, -0.2), ncols=2)
    fresh.set_ylim(flow.get_ylim())
    save(figure, folder / "errors.png")


def spacings(folder: Path) -> None:
    """Error by the spacing of steps."""
    figure, axes = plt.subplots(1, 3, figsize=(9.6, 3.4), sharey=True)
    path = GaussianPath(SCHEDULES["scaled_linear"])
    for panel, name in zip(axes, ("euler, ddim", "heun", "dpm_solver_2m"), strict=True):
        for label, grid in GRIDS.items():
            chosen = [replace(one, grid=grid) for one in affordable(DETERMINISTIC[name])]  # type: ignore[type-var]
            points = [(one.evaluations, distance(one, path)) for one in chosen]
            panel.plot(*zip(*points, strict=True), marker="o", markersize=3, label=label)
        panel.set(title=f"{name} on scaled_linear")
        logarithmic(panel, "network evaluations")
    axes[0].set(ylabel="relative Wasserstein-2 distance")
    axes[-1].legend(loc="center left", bbox_to_anchor=(1.02, 0.5), title="grid")
    save(figure, folder / "spacings.png")


def affordable(sampler: smp.Sampler) -> Iterator[smp.Sampler]:
    """The sampler within every budget it can use."""
    yield from filter(None, (within(sampler, budget) for budget in BUDGETS))


def end_error(sampler: smp.Sampler, denoise: Denoise, path: GaussianPath, z: Tensor, exact: Tensor) -> float:
    """How far samples end from where the probability flow takes them."""
    out = sampler(denoise, path, z, Streams(0, torch.arange(len(z))))
    return float((out - exact).square().sum(1).mean().sqrt())


def adaptive(denoise: Denoise, path: GaussianPath, z: Tensor, exact: Tensor) -> Iterator[tuple[int, float]]:
    """Evaluations and error of the adaptive solver at several tolerances."""
    for tolerance in (1e-2, 1e-3, 1e-4, 1e-5):
        calls: list[Tensor] = []

        def counted(z: Tensor, level: Level, calls: list[Tensor] = calls) -> Denoised:
            calls.append(z)
            return denoise(z, level)

        error = end_error(smp.AdaptiveODE(rtol=tolerance, atol=tolerance), counted, path, z, exact)
        yield len(calls), error


def logarithmic(panel: Axes, label: str) -> None:
    """Both axes, with plain numbers of evaluations."""
    panel.set(xscale="log", yscale="log", xlabel=label)
    panel.set_xticks([5, 10, 20, 50, 100], ["5", "10", "20", "50", "100"])
    panel.minorticks_off()
    panel.grid(alpha=0.25)


def save(figure: plt.Figure, file: Path) -> None:
    """Write a picture."""
    figure.savefig(file)
    plt.close(figure)


# --- figures ---------------------------------------------------------------------------------------------------------


def figures() -> Iterator[tuple[str, str, float]]:
    """What docs/choosing.md quotes: (what, under which conditions, value)."""
    for path in ("linear_flow", "scaled_linear"):
        for budget in (12, 24, 48):
            for name, sampler in (DETERMINISTIC | STOCHASTIC).items():
                if chosen := within(sampler, budget):
                    place = f"{path}, {chosen.evaluations} evaluations"
                    yield f"W2 of {name}", place, distance(chosen, GaussianPath(SCHEDULES[path]))
    path = GaussianPath(SCHEDULES["scaled_linear"])
    for name in ("euler, ddim", "heun", "dpm_solver_2m"):
        for label, grid in GRIDS.items():
            chosen = replace(within(DETERMINISTIC[name], 24), grid=grid)  # type: ignore[type-var]
            yield (
                f"W2 of {name}, grid={label}",
                f"scaled_linear, {chosen.evaluations} evaluations",
                distance(chosen, path),
            )
    mean = torch.linspace(-1, 1, 16, dtype=torch.float64)  # of unit deviations, as latents of one class
    for name in ("scaled_linear", "vp", "edm", "cosine", "linear_flow"):
        alpha, sigma = SCHEDULES[name].alpha_sigma(torch.ones((), dtype=torch.float64))
        floor = float((alpha * mean).square().sum() / (alpha**2 + sigma**2) / 2)  # KL of two Gaussians of equal width
        yield "floor of the prior, nats a sample", f"{name}, 16 dimensions with means", floor
    yield from likelihoods()


def likelihoods() -> Iterator[tuple[str, str, float]]:
    """Measured likelihoods less the true one, on average, in nats per dimension."""
    path, streams = GaussianPath(SCHEDULES["linear_flow"]), Streams(0, torch.arange(200))
    z0 = DEVIATIONS * streams.normal("data", (16,)).double()
    truth = (z0 / DEVIATIONS).square() / 2 + DEVIATIONS.log() + math.log(2 * math.pi) / 2
    denoise = gaussian_denoiser(path)
    methods: dict[str, ProbabilityFlow | VariationalBound] = {
        "ode, tolerance 1e-5": ProbabilityFlow(1e-5),
        "bound, 100 steps": VariationalBound(100),
        "bound, 1000 steps": VariationalBound(1000),
    }
    for name, method in methods.items():
        error = method(denoise, path, z0, streams).nats - truth.mean(1)
        yield f"likelihood by {name}, less the truth", "linear_flow, 16 dimensions, 200 samples", float(error.mean())


def write_figures(folder: Path) -> None:
    """figures.csv beside the pictures."""
    with (folder / "figures.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["what", "where", "value"])
        writer.writerows([what, where, f"{value:.2g}"] for what, where, value in figures())


PARTS: tuple[Callable[[Path], None], ...] = (schedules, times, trajectories, errors, spacings, write_figures)


def main(folder: Path) -> None:
    """Draw everything into ``folder``."""
    folder.mkdir(parents=True, exist_ok=True)
    with mpl.rc_context(STYLE):
        for part in PARTS:
            part(folder)


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).resolve().parent / "pictures")
