r"""DPM-Solver++ 2M and its SDE form (Lu et al. 2022, "DPM-Solver++", algorithm 2 and section 5).

In half log-SNR :math:`\lambda`, the linear part of the reverse process is solved exactly and only the clean data are
approximated, by a straight line through the last two predictions:

.. math:: z_s = \frac{\sigma_s}{\sigma_t} e^{-\eta h} z_t + \alpha_s (1 - e^{-(1 + \eta) h}) D
                + \sigma_s \sqrt{1 - e^{-2 \eta h}} \, \epsilon,
          \qquad D = \hat z_0(t) + \frac{h}{2 h'} (\hat z_0(t) - \hat z_0(t')),

where h is the step from t to s and h' the one before, from t' to t. :math:`\eta = 0` is the probability-flow ODE,
:math:`\eta = 1` the reverse SDE ("SDE-DPM-Solver++ 2M").

The ends: a step of infinite h, from pure noise or to clean data, takes D = :math:`\hat z_0(t)`, and so does the step
after one of infinite h', where :math:`h / h' = 0`. These are steps of first order over a stretch as short as 1 / n. On
``flow_grid`` the k-th step from either end has h of about 1 / k whatever n is, so that the error falls like
log(n) / n^2; over a fixed range of log-SNR it is of second order.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from ldm_lightning.diffusion.denoised import Denoise
from ldm_lightning.diffusion.needs import Needs
from ldm_lightning.diffusion.path import GaussianPath
from ldm_lightning.diffusion.sampler.grid import Grid, flow_grid
from ldm_lightning.diffusion.sampler.part import WHOLE, Part
from ldm_lightning.diffusion.sampler.trajectory import FreshNoise, full_precision, step_size, trajectory
from ldm_lightning.errors import UserError
from ldm_lightning.rng import Streams

__all__ = ["DPMSolver2M"]


@dataclass(frozen=True)
class DPMSolver2M:
    """Second order at one evaluation a step.

    Attributes:
        steps: number of steps, equal to the number of network evaluations.
        eta: 0 the deterministic method, 1 its SDE form; between them the noise injected grows.
        grid: times of the steps.
    """

    needs: ClassVar[Needs] = Needs(paths=(GaussianPath,))

    steps: int = 25
    eta: float = 0.0
    grid: Grid = flow_grid

    def __post_init__(self) -> None:
        if self.eta < 0:
            raise UserError(f"sampler.eta={self.eta}: set it to 0 (deterministic), 1 (SDE form) or another value above")

    @property
    def evaluations(self) -> int:
        """Exact number of network evaluations."""
        return self.steps

    @full_precision
    def __call__(self, denoise: Denoise, path: GaussianPath, z: Tensor, streams: Streams, part: Part = WHOLE) -> Tensor:
        """Turn ``z`` (B, C, *space) at the start of ``part`` into latents of the same shape at its stop."""
        before, h_before, noise = z, math.inf, FreshNoise(streams, z, part)
        for step, (t, s) in enumerate(trajectory(self.grid, self.steps, path, z, part)):
            clean, h = denoise(z, t).clean, step_size(t, s)
            ahead = clean if math.inf in (h, h_before) else clean + h / (2 * h_before) * (clean - before)
            kept = s.sigma / t.sigma * math.exp(-h) ** self.eta
            z = kept * z - s.alpha * math.expm1(-(1 + self.eta) * h) * ahead
            if self.eta > 0:
                z = noise.add(z, s.sigma * math.sqrt(-math.expm1(-2 * self.eta * h)), step)
            before, h_before = clean, h
        return z
