r"""Likelihood of latents under a diffusion model: exactly, by its ODE, or as a variational bound.

**The probability-flow ODE** (Song et al. 2021) turns the density at t = 1 into that of the data by a deterministic
flow, along which the log-density changes by the divergence of the velocity. In the coordinates y, c of the linear flow
(:mod:`~ldm_lightning.diffusion.sampler.flow_coordinates`), with D dimensions,

.. math:: \log p(z_0) = \log p(z_1) + D \log \frac{\alpha_1 + \sigma_1}{\alpha_0 + \sigma_0}
          + \int_{c_0}^{c_1} \nabla_y \cdot \frac{y - \hat z_0}{c} \, dc .

**The variational bound** (Ho et al. 2020; Kingma et al. 2021) is that of the ancestral sampler with T steps, on any
Gaussian path. With SNR = :math:`\alpha^2 / \sigma^2` it is the expectation over :math:`q(z_t | z_0)` of

.. math:: KL(q(z_1 | z_0) \| p(z_1)) + \sum_{k=2}^{T} \tfrac12 \left(SNR(t_{k-1}) - SNR(t_k)\right)
          \|z_0 - \hat z_0(z_{t_k})\|^2 - \log p(z_0 | z_{t_1}) .

The decoder :math:`p(z_0 | z_{t_1})` of continuous latents is a Gaussian around the prediction with the variance
:math:`\sigma^2 / (\alpha^2 + \sigma^2)` that standardized latents have given :math:`z_{t_1}`.

**Discrete latents** on a Gaussian path (bits or codes as numbers, pixels of 8 bits) have no density: what is measured
is a bound on their probability, see :mod:`~ldm_lightning.diffusion.dequantization`. The ODE then starts where its noise
just fits into the lattice's cells, and the decoder of the bound is the Gaussian's integral over a cell.

On a Bernoulli path the bound is the same sum of divergences, of the ancestral sampler of bits, and every one is known
exactly; its last term is the cross-entropy of the clean bits. There is no flow to follow, hence no exact likelihood.

Figures are in nats per latent dimension, lower is better, and compare only between models on the same first stage. On
a Gaussian path they are densities of *standardized latents*, and negative values are normal; those of bits and of
other discrete latents are probabilities, and fair coins cost log 2. Bits per dimension of the pictures would need the
likelihood of the first stage's decoder as well and are not offered; only where latents are the pixels is it the figure
over log 2.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor

from ldm_lightning.diffusion.denoised import Denoise, Level
from ldm_lightning.diffusion.dequantization import HALF_CELL, cell_log_mass, cell_noise
from ldm_lightning.diffusion.learned_variance import step_nats
from ldm_lightning.diffusion.needs import Needs
from ldm_lightning.diffusion.path import BernoulliPath, GaussianPath
from ldm_lightning.diffusion.sampler.flow_coordinates import velocity
from ldm_lightning.diffusion.sampler.grid import Grid
from ldm_lightning.diffusion.sampler.trajectory import host, level_at, levels
from ldm_lightning.diffusion.schedule import Schedule, flow_time
from ldm_lightning.errors import UserError
from ldm_lightning.rng import Streams

__all__ = ["Likelihood", "LikelihoodMethod", "ProbabilityFlow", "VariationalBound", "bound_grid", "prior_log_density"]

LogDensity = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Likelihood:
    """What a latent costs.

    Attributes:
        nats: (B,) negative log-likelihood, or a bound that is above it in expectation, per latent dimension.
        evaluations: network evaluations it took, without those of its gradients.
    """

    nats: Tensor
    evaluations: int


class LikelihoodMethod(Protocol):
    """A way to the likelihood of latents; its paths it declares as :class:`~ldm_lightning.diffusion.needs.Needs`.

    Attributes:
        label: of the figure.
    """

    label: ClassVar[str]

    def __call__(
        self, denoise: Denoise, path: Any, z0: Tensor, streams: Streams, *, spacing: Tensor | None = None
    ) -> Likelihood:
        """Measure the clean latents ``z0`` (B, C, *space), points of a lattice if there is a ``spacing`` (C or 1,)."""
        ...


def prior_log_density(path: GaussianPath, z: Tensor) -> Tensor:
    """(B,) log-density of z at t = 1 under N(0, alpha(1)^2 + sigma(1)^2), where samplers start."""
    alpha, sigma = path.schedule.alpha_sigma(z.new_ones(()))
    return _normal(z, alpha**2 + sigma**2)


@dataclass(frozen=True, eq=False)
class _Start:
    """Where the flow sets out from.

    Attributes:
        z: (B, C, *space) float64.
        clock: c there.
        log_scale: log(alpha + sigma) there.
        log_density: (B,) per dimension, of the noise that ``z`` holds to fill its cells; 0 without.
    """

    z: Tensor
    clock: Tensor
    log_scale: Tensor
    log_density: Tensor | float


@dataclass(frozen=True)
class ProbabilityFlow:
    """Exact negative log-likelihood by the probability-flow ODE, with an adaptive solver (dopri5).

    Steps suit the worst sample of a batch, so another split into batches changes results within the tolerance.

    Attributes:
        tolerance: relative and absolute, of each step, of latents and of nats per dimension.
        probes: random directions of Hutchinson's estimate of the divergence, each costing one gradient an evaluation;
            the result is exact in expectation (Grathwohl et al. 2019). None: the exact divergence by one gradient a
            dimension, for few dimensions.
        start: c at which the latents are taken to be clean; at 0 itself the velocity is 0 / 0. Discrete latents start
            where their lattice says.
    """

    label: ClassVar[str] = "nll"
    needs: ClassVar[Needs] = Needs(paths=(GaussianPath,))
    tolerance: float = 1e-5
    probes: int | None = 1
    start: float = 1e-6

    def __post_init__(self) -> None:
        if self.tolerance <= 0:
            raise UserError(f"likelihood.tolerance={self.tolerance} must be above 0; 1e-5 is usual")
        if self.probes is not None and self.probes < 1:
            raise UserError(f"likelihood.probes={self.probes}: set at least 1, or null for the exact divergence")
        if not 0 < self.start < 0.1:
            raise UserError(f"likelihood.start={self.start} must be above 0 and small; 1e-6 is usual")

    def __call__(
        self,
        denoise: Denoise,
        path: GaussianPath,
        z0: Tensor,
        streams: Streams,
        terminal: LogDensity | None = None,
        *,
        spacing: Tensor | None = None,
    ) -> Likelihood:
        """Measure the clean latents.

        Args:
            denoise: the model, in the precision of ``z0``; the flow itself is integrated in float64.
            path: its path.
            z0: (B, C, *space) latents.
            streams: where the probes of each sample come from, which stay the same along the whole flow, and its noise.
            terminal: (B, C, *space) latents at t = 1 -> (B,) log-density; :func:`prior_log_density` by default.
            spacing: (C or 1,) distance of neighbouring latents where they are points of a lattice; the result is a
                bound on their probability, in expectation.

        Raises:
            UserError: the solver's steps become too small for the tolerance.
        """
        from torchdiffeq import odeint  # brings scipy, which takes a second

        start = self._clean(z0) if spacing is None else _within_cells(path, z0, streams, spacing)
        alpha, sigma = path.schedule.alpha_sigma(start.clock.new_ones(()))
        last, log_scale = sigma / (alpha + sigma), (alpha + sigma).log()
        schedule, directions = host(path.schedule), self._directions(z0, streams)
        dimensions, evaluations, tol = z0[0].numel(), 0, self.tolerance

        def slope(c: Tensor, state: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
            nonlocal evaluations
            evaluations += 1
            t = flow_time(path.schedule, c).expand(len(z0))
            a, s = path.coefficients(t, z0)
            with torch.enable_grad():
                y = state[0].detach().requires_grad_()
                level = level_at(schedule, t.to(torch.promote_types(z0.dtype, torch.float32)))
                flow = velocity(y, c, denoise(((a + s) * y).to(z0.dtype), level).clean.double())
                divergence = torch.zeros_like(state[1])
                for direction in directions:
                    (pulled,) = torch.autograd.grad(flow, y, direction, retain_graph=True)
                    divergence += (pulled * direction).flatten(1).sum(1)
            return flow.detach(), divergence / (dimensions * (self.probes or 1))

        with torch.no_grad():
            state = start.z / start.log_scale.exp(), z0.new_zeros(len(z0), dtype=torch.float64)
            # Where the path ends a step has to end, for the solver would go beyond and interpolate back.
            options = {"first_step": (last - start.clock) / 100, "step_t": last[None], "norm": _worst}
            both = torch.stack([start.clock, last])
            try:
                (_, y1), (_, change) = odeint(slope, state, both, rtol=tol, atol=tol, method="dopri5", options=options)
            except AssertionError as error:
                raise UserError(f"likelihood.tolerance={tol} is not reached ({error}): set a larger one") from error
            z1 = log_scale.exp() * y1
            log_density = prior_log_density(path, z1) if terminal is None else terminal(z1)
        nats = start.log_scale - log_scale - change - log_density / dimensions
        return Likelihood(nats + start.log_density, evaluations)

    def _clean(self, z0: Tensor) -> _Start:
        """Continuous latents, as they are."""
        z = z0.double()
        return _Start(z, z.new_tensor(self.start), z.new_zeros(()), 0.0)

    def _directions(self, z0: Tensor, streams: Streams) -> Tensor:
        """(K, B, C, *space): unit vectors, or Rademacher probes."""
        if self.probes is None:
            basis = torch.eye(z0[0].numel(), dtype=torch.float64, device=z0.device)
            return basis.view(-1, 1, *z0.shape[1:]).expand(-1, *z0.shape)
        signs = [streams.uniform(f"likelihood/{probe}", z0.shape[1:]) < 0.5 for probe in range(self.probes)]
        return 2 * torch.stack(signs).double() - 1


def _within_cells(path: GaussianPath, z0: Tensor, streams: Streams, spacing: Tensor) -> _Start:
    """Points of a lattice with the path's own noise, at the level at which it just fits into the narrowest cells."""
    width = _cells(spacing.double(), z0)
    level = width.min() / (2 * HALF_CELL)  # sigma / alpha
    alpha, sigma = path.schedule.scale(-2 * level.log())
    noise, log_density = cell_noise(streams.uniform("cell", z0.shape[1:]), width / (2 * level))
    return _Start(
        alpha * z0.double() + sigma * noise,
        sigma / (alpha + sigma),
        (alpha + sigma).log(),
        (log_density - sigma.log()).flatten(1).mean(1),
    )


def bound_grid(steps: int, schedule: Schedule) -> Tensor:
    """(steps + 1,) float64 times from 1 to 0, evenly spaced in log-SNR where sigma / alpha is within 1e-3 and 1e3.

    Only if the SNR of neighbouring times becomes alike does the bound become tight. At even times it does not: however
    many there are, the SNR at the second one is half that at the first (on the linear flow, a quarter).
    """
    widest = 2 * math.log(1e3)
    first = schedule.log_snr(torch.ones(1, dtype=torch.float64)).clamp(min=-widest)
    times = schedule.time(torch.lerp(first, torch.full_like(first, widest), torch.linspace(0, 1, steps).double()))
    times[0] = 1
    return torch.cat([times, times.new_zeros(1)])


@dataclass(frozen=True)
class VariationalBound:
    """Upper bound on the negative log-likelihood: what the ancestral sampler with ``steps`` steps guarantees.

    The noise of each sample and step is drawn once, so that the bound holds in expectation, not for every sample.

    Attributes:
        steps: T, equal to the number of network evaluations; more make the bound tighter.
        grid: times of the steps on a Gaussian path, on a Bernoulli path they are even; ``uniform_grid`` with 1000 steps
            are those of a DDPM table.
    """

    label: ClassVar[str] = "nll_bound"
    needs: ClassVar[Needs] = Needs(paths=(GaussianPath, BernoulliPath))
    steps: int = 1000
    grid: Grid = bound_grid

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise UserError(f"likelihood.steps={self.steps}: at least one step is needed")

    @torch.no_grad()
    def __call__(
        self,
        denoise: Denoise,
        path: GaussianPath | BernoulliPath,
        z0: Tensor,
        streams: Streams,
        *,
        spacing: Tensor | None = None,
    ) -> Likelihood:
        """Measure the clean latents.

        Args:
            denoise: the model, in the precision of ``z0``; terms are computed and added in float64.
            path: its path.
            z0: (B, C, *space) latents.
            streams: where the noise of each sample comes from.
            spacing: (C or 1,) distance of neighbouring latents where, on a Gaussian path, they are points of a lattice.
        """
        if isinstance(path, BernoulliPath):
            return Likelihood(self._of_bits(denoise, path, z0, streams), self.steps)
        return Likelihood(self._of_latents(denoise, path, z0, streams, spacing), self.steps)

    def _of_latents(
        self, denoise: Denoise, path: GaussianPath, z0: Tensor, streams: Streams, spacing: Tensor | None
    ) -> Tensor:
        """(B,) bound on a Gaussian path."""
        data = z0.double()
        width = None if spacing is None else _cells(spacing.double(), data)
        schedule = host(path.schedule)
        times = self.grid(self.steps, schedule).flip(0)
        alpha, sigma = (part.to(z0.device)[:, None] for part in schedule.alpha_sigma(times))
        exact, starts = times.to(z0.device), levels(schedule, times, z0)
        snr = (alpha / sigma).square()
        # KL of N(alpha z_0, sigma^2) and the prior N(0, alpha^2 + sigma^2) at t = 1.
        power = alpha[-1] ** 2 + sigma[-1] ** 2
        mean_square = data.square().flatten(1).mean(1)
        nats = (power / sigma[-1] ** 2).log() / 2 + alpha[-1] ** 2 * (mean_square - 1) / (2 * power)
        for k in range(self.steps, 0, -1):
            noise = streams.normal(f"bound/{k}", z0.shape[1:]).to(z0.dtype)
            answer = denoise(path.corrupt(z0, starts[k].time, noise), starts[k])
            clean, fraction = answer.clean.double(), answer.variance_fraction
            if fraction is not None:
                if self.steps < 2:
                    raise UserError("likelihood.steps=1: a learned variance needs at least 2")
                around = exact[[k - 1, k, min(k + 1, self.steps)], None].expand(-1, len(z0)).unbind()
                nats = nats + step_nats(path, data, clean, fraction, around, cells=width)
            elif k > 1:
                error = (data - clean).square().flatten(1).mean(1)
                nats = nats + (snr[k - 1] - snr[k]) * error / 2
            else:
                variance = sigma[1] ** 2 / (alpha[1] ** 2 + sigma[1] ** 2)
                if width is None:
                    nats = nats - _normal(data - clean, variance) / data[0].numel()
                else:
                    nats = nats - cell_log_mass(data - clean, variance.sqrt(), width).flatten(1).mean(1)
        return nats

    def _of_bits(self, denoise: Denoise, path: BernoulliPath, z0: Tensor, streams: Streams) -> Tensor:
        """(B,) bound on a Bernoulli path."""
        data, steps = z0.double(), torch.arange(self.steps + 1, dtype=torch.float64, device=z0.device) / self.steps
        # KL of q(z_1 | z_0), which only a keep(1) other than 0 tells from fair coins.
        nats = _bernoulli_kl((1 + path.coefficients(steps[-1:], data)[0] * data) / 2, torch.full_like(data, 0.5))
        for k in range(self.steps, 0, -1):
            noise = streams.uniform(f"bound/{k}", z0.shape[1:])
            s, t = (steps[number].expand(len(z0)) for number in (k - 1, k))
            z_t = path.corrupt(data, t, noise)
            logits = denoise(z_t.to(z0.dtype), Level(t.to(z0.dtype), k / self.steps)).clean.double()
            if k > 1:
                model = path.step(z_t, logits, (k - 1) / self.steps, k / self.steps)
                nats = nats + _bernoulli_kl(path.posterior(z_t, data, s, t), model)
            else:
                nats = nats + path.loss(logits, (1 + data) / 2)
        return nats


def _cells(spacing: Tensor, like: Tensor) -> Tensor:
    """View (C or 1,) so that it broadcasts over ``like`` (B, C, *space)."""
    return spacing.to(like.device).view(1, -1, *[1] * (like.ndim - 2))


def _normal(z: Tensor, variance: Tensor) -> Tensor:
    """(B,) log-density of z (B, C, *space) under N(0, variance)."""
    return -(z.square().flatten(1) / variance + (2 * math.pi * variance).log()).sum(1) / 2


def _bernoulli_kl(p: Tensor, q: Tensor) -> Tensor:
    """(B,) divergence of bits that are 1 with probability p from those with q, averaged over a sample's dimensions."""
    elements: Tensor = torch.special.xlogy(p, p / q) + torch.special.xlogy(1 - p, (1 - p) / (1 - q))
    return elements.flatten(1).mean(1)


def _worst(state: tuple[Tensor, Tensor]) -> Tensor:
    """The largest error of any sample: root mean square of its latents, or its nats."""
    return torch.maximum(state[0].flatten(1).square().mean(1).sqrt(), state[1].abs()).max()
