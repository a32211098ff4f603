r"""UniPC of order 2 with B(h) = e^h - 1, "bh2" (Zhao et al. 2023, "UniPC: a unified predictor-corrector framework").

The clean data predicted at the end of a step serve twice: they correct that step (UniC) and start the next (UniP), so a
corrector costs no evaluation. With :math:`\hat z_0` at the last level t and at the one before, t', by data prediction,

.. math:: z_s = \frac{\sigma_s}{\sigma_t} z_t + \alpha_s (1 - e^{-h}) \left(\hat z_0(t)
          + \rho' \frac{\hat z_0(t') - \hat z_0(t)}{r} + \rho (\hat z_0(s) - \hat z_0(t)) \right),
          \qquad r = \frac{\lambda_{t'} - \lambda_t}{h} .

The predictor has :math:`\rho' = 1/2, \rho = 0` and equals DPM-Solver++ 2M; the corrector solves :math:`\rho' + \rho =
b_1, \, r \rho' + \rho = b_2`, where b are the exact integrals of the first two powers. The first step, of order one,
corrects with :math:`\rho = 1/2`, and so does the one after a step from pure noise (infinite h): this is the exact
integral of clean data linear in alpha / sigma, as they are there. The last step, to t = 0, answers the last clean data.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from ldm_lightning.diffusion.denoised import Denoise, Level
from ldm_lightning.diffusion.needs import Needs
from ldm_lightning.diffusion.path import GaussianPath
from ldm_lightning.diffusion.sampler.grid import Grid, flow_grid
from ldm_lightning.diffusion.sampler.part import WHOLE, Part
from ldm_lightning.diffusion.sampler.trajectory import full_precision, step_size, trajectory
from ldm_lightning.rng import Streams

__all__ = ["UniPC"]


def corrector(h: float, h_before: float) -> tuple[float, float]:
    """rho' / r and rho of the corrector of a step h after one of h_before; infinite before the first."""
    if h_before == math.inf:
        return 0.0, 0.5
    b = math.expm1(-h)
    phi_2 = b / -h - 1
    phi_3 = phi_2 / -h - 1 / 2
    r = -h_before / h
    far = (phi_2 - 2 * phi_3) / b / (1 - r)
    return far / r, phi_2 / b - far


def advance(z: Tensor, t: Level, s: Level, clean: Tensor) -> Tensor:
    """z_s, were ``clean`` the clean data on the way from t to s."""
    return s.sigma / t.sigma * z - s.alpha * math.expm1(-step_size(t, s)) * clean


@dataclass(frozen=True)
class UniPC:
    """Second order at one evaluation a step, with a smaller error than DPM-Solver++ 2M.

    Attributes:
        steps: number of steps, equal to the number of network evaluations.
        grid: times of the steps.
    """

    needs: ClassVar[Needs] = Needs(paths=(GaussianPath,))

    steps: int = 25
    grid: Grid = flow_grid

    @property
    def evaluations(self) -> int:
        """Exact number of network evaluations."""
        return self.steps

    @full_precision
    def __call__(self, denoise: Denoise, path: GaussianPath, z: Tensor, streams: Streams, part: Part = WHOLE) -> Tensor:
        """Turn ``z`` (B, C, *space) at the start of ``part`` into latents of the same shape at its stop."""
        steps = trajectory(self.grid, self.steps, path, z, part)
        start, u, clean, before, h = z, steps[0][0], z, z, math.inf  # placeholders: the first step has none before it
        h_before = math.inf
        for step, (t, s) in enumerate(steps):
            answer = denoise(z, t).clean
            if step > 0:
                far, near = corrector(h, h_before)
                z = advance(start, u, t, clean + far * (before - clean) + near * (answer - clean))
                before = clean
            h_before, h = h, step_size(t, s)
            ahead = answer if math.inf in (h, h_before) else answer + h / (2 * h_before) * (answer - before)
            start, u, clean = z, t, answer
            z = advance(z, t, s, ahead)
        return z
