r"""Learned variance of the ancestral step (Nichol & Dhariwal 2021, "Improved DDPM", section 3.1).

A model's step from t down to s draws :math:`z_s` around the mean of :math:`q(z_s | z_t, z_0 = \hat z_0)`, the posterior
at the predicted clean data. Its variance lies between two extremes,

.. math:: \text{lower} = \sigma_s^2 \, \delta , \qquad
          \text{upper} = \sigma_t^2 \, \delta \, \frac{\alpha_s^2 + \sigma_s^2}{\alpha_t^2 + \sigma_t^2} , \qquad
          \delta = 1 - \frac{SNR_t}{SNR_s} .

The lower one is right if all data are one point, the upper one if they are N(0, I); on a DDPM table they are
:math:`\tilde\beta_t` and :math:`\beta_t`. The network answers with a second number f for every latent, and

.. math:: \log \text{variance} = f \log \text{upper} + (1 - f) \log \text{lower} .

The squared error says nothing about f. It is trained by the variational bound, in which the mean takes part without a
gradient (:class:`~ldm_lightning.diffusion.objective.VarianceBound`).

The last step, to s = 0, has no noise, but a density of the clean data in the bound: its lower extreme is that of the
step before, as in the published code. It is a Gaussian, as latents are continuous; for points of a lattice it is the
Gaussian's integral over a cell.
"""

from __future__ import annotations

import math
from typing import TypeVar

import torch
from torch import Tensor

from ldm_lightning.diffusion.dequantization import cell_log_mass
from ldm_lightning.diffusion.path import GaussianPath, expand

__all__ = ["extremes", "fraction_of", "step_nats"]

T = TypeVar("T", float, Tensor)


def fraction_of(output: Tensor) -> Tensor:
    """f (B, C, *space) of a network's output (B, 2 C, *space): its second half, from [-1, 1] to [0, 1], not clamped."""
    return (output.chunk(2, dim=1)[1] + 1) / 2


def extremes(added: T, alpha: tuple[T, T], sigma: tuple[T, T]) -> tuple[T, T]:
    """The lower and the upper variance of a step.

    Args:
        added: 1 - SNR(t) / SNR(s).
        alpha: at s and at t.
        sigma: likewise.
    """
    power = alpha[0] ** 2 + sigma[0] ** 2, alpha[1] ** 2 + sigma[1] ** 2
    return sigma[0] ** 2 * added, sigma[1] ** 2 * added * power[0] / power[1]


def step_nats(
    path: GaussianPath,
    z0: Tensor,
    clean: Tensor,
    fraction: Tensor,
    times: tuple[Tensor, ...],
    *,
    cells: Tensor | None = None,
) -> Tensor:
    """The bound's term of one step: KL(q(z_s | z_t, z_0) || p(z_s | z_t)), or -log p(z_0 | z_t) where s is 0.

    Args:
        path: the corruption.
        z0: (B, C, *space) clean latents.
        clean: as the model predicts them from z_t.
        fraction: f, likewise.
        times: (B,) each: s, t, and the start of the step before, above t.
        cells: widths of a lattice's cells, which broadcast over ``z0``; None for continuous latents.

    Returns:
        (B,) nats per latent dimension, in the precision of the times.
    """
    s, t, before = times
    last = s == 0
    lower, _ = _extremes_at(path, torch.where(last, t, s), torch.where(last, before, t), z0)
    _, upper = _extremes_at(path, s, t, z0)
    log_variance = torch.lerp(lower.log().expand_as(z0), upper.log().expand_as(z0), fraction.to(lower.dtype))
    error = (path.coefficients(s, z0)[0] * path.added(s, t, z0) * (z0 - clean)).square()
    # Of a Gaussian from another one, or a density at a point, which has no width of its own.
    point = expand(last, z0)
    width = torch.where(point, 0.0, lower)
    constant = torch.where(point, math.log(2 * math.pi), -lower.log() - 1)
    twice = log_variance + constant + (width + error) / log_variance.exp()
    if cells is not None:
        twice = torch.where(point, -2 * cell_log_mass(z0 - clean, (log_variance / 2).exp(), cells), twice)
    return twice.flatten(1).mean(1) / 2


def _extremes_at(path: GaussianPath, s: Tensor, t: Tensor, like: Tensor) -> tuple[Tensor, Tensor]:
    (alpha_s, sigma_s), (alpha_t, sigma_t) = path.coefficients(s, like), path.coefficients(t, like)
    return extremes(path.added(s, t, like), (alpha_s, alpha_t), (sigma_s, sigma_t))
