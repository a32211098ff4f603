r"""The stochastic sampler of EDM (Karras et al. 2022, algorithm 2).

Before every step of Heun's method, "churn" raises the noise from :math:`\hat\sigma = \sigma / \alpha` to
:math:`(1 + \gamma) \hat\sigma` by fresh noise, which lets later steps correct the errors of earlier ones:

.. math:: \gamma = \min(S_{churn} / n, \sqrt 2 - 1) \text{ where } S_{min} \le \hat\sigma \le S_{max},
          \qquad x \leftarrow x + \sqrt{(1 + \gamma)^2 - 1} \, \hat\sigma S_{noise} \epsilon, \qquad x = z / \alpha .

A path holds no more noise than at t = 1: what would rise above stops there, so the first step has no churn.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from ldm_lightning.diffusion.denoised import Denoise, Level
from ldm_lightning.diffusion.needs import Needs
from ldm_lightning.diffusion.path import GaussianPath
from ldm_lightning.diffusion.sampler.grid import Grid, flow_grid
from ldm_lightning.diffusion.sampler.heun import heun_step
from ldm_lightning.diffusion.sampler.part import WHOLE, Part
from ldm_lightning.diffusion.sampler.trajectory import (
    FreshNoise,
    Scale,
    flow_scale,
    full_precision,
    host,
    levels,
    trajectory,
)
from ldm_lightning.rng import Streams

__all__ = ["EDM"]


@dataclass(frozen=True)
class EDM:
    """Second order, stochastic; without churn it is :class:`Heun`.

    Attributes:
        steps: number of steps; it takes 2 * steps - 1 network evaluations.
        s_churn: how much noise is added over the whole trajectory.
        s_tmin: smallest sigma / alpha at which noise is added.
        s_tmax: largest.
        s_noise: factor on the fresh noise, 1 for an exact denoiser; slightly above makes up for one that smooths.
        grid: times of the steps.
        scale: coordinates of Heun's steps; ``signal_scale`` is the published form.

    The defaults are those of the paper's table 5 for ImageNet but for ``s_noise`` = 1.003.
    """

    needs: ClassVar[Needs] = Needs(paths=(GaussianPath,))

    steps: int = 25
    s_churn: float = 40.0
    s_tmin: float = 0.05
    s_tmax: float = 50.0
    s_noise: float = 1.0
    grid: Grid = flow_grid
    scale: Scale = flow_scale

    @property
    def evaluations(self) -> int:
        """Exact number of network evaluations."""
        return 2 * self.steps - 1

    @full_precision
    def __call__(self, denoise: Denoise, path: GaussianPath, z: Tensor, streams: Streams, part: Part = WHOLE) -> Tensor:
        """Turn ``z`` (B, C, *space) at the start of ``part`` into latents of the same shape at its stop."""
        steps, noise = trajectory(self.grid, self.steps, path, z, part), FreshNoise(streams, z, part)
        for step, ((t, s), churned) in enumerate(zip(steps, self.churn(path, [t for t, _ in steps], z), strict=True)):
            if churned is not t:
                ratio = churned.alpha / t.alpha
                added = math.sqrt(max(churned.sigma**2 - (ratio * t.sigma) ** 2, 0.0))
                z = noise.add(ratio * z, self.s_noise * added, step)
            z = heun_step(denoise, z, churned, s, self.scale)
        return z

    def churn(self, path: GaussianPath, starts: list[Level], z: Tensor) -> list[Level]:
        """The levels to which churn raises the ``starts`` of the steps; the same objects where it does not."""
        gamma, schedule = min(self.s_churn / self.steps, math.sqrt(2) - 1), host(path.schedule)
        highest = schedule.log_snr(torch.ones(1, dtype=torch.float64)).item()
        raised = [min(max(t.log_snr - 2 * math.log1p(gamma), highest), t.log_snr) for t in starts]
        churned = levels(schedule, schedule.time(torch.tensor(raised, dtype=torch.float64)), z)
        return [
            high if low < t.log_snr and self.s_tmin <= math.exp(-t.log_snr / 2) <= self.s_tmax else t
            for t, low, high in zip(starts, raised, churned, strict=True)
        ]
