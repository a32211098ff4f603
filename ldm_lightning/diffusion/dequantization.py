r"""Latents that are points of a lattice: from densities to probabilities.

Discrete latents have no density. A model of one, sharp enough, may put any density on the points, and a figure of it
measures how closely one looks. What they have is a probability, and it can be bounded by that of the lattice's *cells*,
the boxes around the points (Theis et al. 2016): with noise u of density q inside the cell,

.. math:: -\log P(z_0) = -\log \int_{cell} p(z_0 + u) \, du \le E_q\left[-\log p(z_0 + u) + \log q(u)\right] .

The flow of a diffusion model knows a density at every time. Just before the clean end the marginal of a model that was
trained on the points is a Gaussian of deviation sigma / alpha around each of them. So this is the noise to add, cut off
at the borders of the cell (Zheng et al., ICML 2023, "Improved techniques for maximum likelihood estimation for
diffusion ODEs": truncated-normal dequantization): for the optimal model the bound is off by the mass cut off alone.
Uniform noise is where such a model has never seen anything.

The variational bound needs no noise: its decoder becomes a choice among cells (Ho et al. 2020, eq. 13).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

__all__ = ["HALF_CELL", "cell_log_mass", "cell_noise"]

HALF_CELL = 4.0  # deviations of the noise; what is cut off costs 6e-5 nats a dimension


def cell_noise(uniform: Tensor, half: Tensor) -> tuple[Tensor, Tensor]:
    """Standard normals within [-half, half], and their log-density.

    Args:
        uniform: (B, C, *space) in [0, 1).
        half: broadcasts over it, above 0.

    Returns:
        Both float64, shaped like ``uniform``.
    """
    half = half.double()
    mass = torch.erf(half / math.sqrt(2))
    noise = torch.special.ndtri(0.5 + mass * (uniform.double() + 2.0**-25 - 0.5))  # the middles of 2^24 intervals
    return noise, -noise.square() / 2 - math.log(2 * math.pi) / 2 - mass.log()


def cell_log_mass(error: Tensor, std: Tensor, spacing: Tensor) -> Tensor:
    """Log-probability under N(0, std^2) of the cell of width ``spacing`` around ``error``, elementwise in float64."""
    near, far = (
        torch.special.log_ndtr(-(error.abs().double() + side * spacing.double() / 2) / std) for side in (-1, 1)
    )
    mass: Tensor = near + torch.log1p(-torch.exp(far - near))
    return mass
