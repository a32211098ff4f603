r"""DDPM tables: the variances :math:`\beta_k` of T forward steps z_k = sqrt(1 - beta_k) z_{k-1} + sqrt(beta_k) noise.

Published as the variances themselves, or as the signal :math:`\bar\alpha(k / T) = \prod_{i \le k} (1 - \beta_i)` that
is left after k steps; of the latter the last steps would be endless, so that each variance is capped. All answers
are (T,) float64, for :class:`~ldm_lightning.diffusion.schedule.table.TableSchedule`.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

__all__ = [
    "cosine_betas",
    "laplace_betas",
    "linear_betas",
    "scaled_linear_betas",
    "sigmoid_betas",
    "zero_terminal_snr",
]


def linear_betas(steps: int = 1000, first: float = 1e-4, last: float = 0.02) -> Tensor:
    """Variances rising linearly (Ho et al. 2020); the ends are those of 1000 steps and not rescaled for others."""
    return torch.linspace(first, last, steps, dtype=torch.float64)


def scaled_linear_betas(steps: int = 1000, first: float = 0.00085, last: float = 0.012) -> Tensor:
    """Variances whose roots rise linearly: the schedule of latent diffusion (Rombach et al. 2022)."""
    return torch.linspace(first**0.5, last**0.5, steps, dtype=torch.float64) ** 2


def cosine_betas(steps: int = 1000, offset: float = 0.008, largest: float = 0.999) -> Tensor:
    """The cosine schedule, each variance capped at ``largest`` (Nichol & Dhariwal 2021, eq. 17)."""
    angle = (_times(steps) + offset) / (1 + offset) * math.pi / 2
    return _betas(angle.cos() ** 2, largest)


def sigmoid_betas(
    steps: int = 1000, start: float = -3.0, end: float = 3.0, temperature: float = 1.0, largest: float = 0.999
) -> Tensor:
    """The sigmoid schedule, each variance capped at ``largest`` (Jabri et al. 2022; Chen 2023, section 2.1).

    alpha_bar is the piece of a sigmoid between ``start`` and ``end``, stretched to run from 1 to 0. A temperature below
    1 (0.9 for large pictures) makes it steeper in the middle.
    """
    rise = ((start + _times(steps) * (end - start)) / temperature).sigmoid()
    return _betas((rise[-1] - rise) / (rise[-1] - rise[0]), largest)


def laplace_betas(steps: int = 1000, mean: float = 0.0, width: float = 0.5, largest: float = 0.999) -> Tensor:
    """The Laplace schedule, each variance capped at ``largest`` (Hang et al. 2024, table 1).

    At uniform times the log-SNR has a Laplace distribution of this mean and width: most steps in the middle noise.
    """
    t = _times(steps)
    log_snr = mean - width * torch.sign(0.5 - t) * torch.log1p(-2 * (t - 0.5).abs())
    return _betas(log_snr.sigmoid(), largest)


def zero_terminal_snr(betas: Tensor) -> Tensor:
    """The table rescaled to end in pure noise: its last variance is exactly 1 (Lin et al. 2023, algorithm 1).

    The roots of alpha_bar are shifted until the last is 0 and stretched until the first is what it was.
    """
    root = torch.cumprod(1 - torch.as_tensor(betas, dtype=torch.float64), 0).sqrt()
    root = (root - root[-1]) * root[0] / (root[0] - root[-1])
    return _betas(torch.cat([torch.ones_like(root[:1]), root**2]))


def _times(steps: int) -> Tensor:
    """(T + 1,) times k / T from 0 to 1."""
    return torch.arange(steps + 1, dtype=torch.float64) / steps


def _betas(alpha_bar: Tensor, largest: float = 1.0) -> Tensor:
    """(T,) variances of the steps between (T + 1,) signals."""
    return (1 - alpha_bar[1:] / alpha_bar[:-1]).clamp(max=largest)
