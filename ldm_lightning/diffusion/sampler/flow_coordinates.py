r"""The probability-flow ODE of every Gaussian path, in the coordinates of the linear flow.

Dividing by :math:`\alpha + \sigma` turns any Gaussian path into the linear one:

.. math:: y = \frac{z}{\alpha + \sigma} = (1 - c) z_0 + c \epsilon, \qquad c = \frac{\sigma}{\alpha + \sigma},
          \qquad \frac{dy}{dc} = \epsilon - z_0, \qquad 0 \le c \le 1 .

The velocity is finite at both ends of time for every schedule, including those without signal at t = 1, where the
usual :math:`\sigma / \alpha` clock is infinite (Karras et al. 2022). For the linear flow itself y = z and c = t.
"""

from __future__ import annotations

from torch import Tensor

from ldm_lightning.diffusion.path import GaussianPath

__all__ = ["scale_and_clock", "velocity"]


def scale_and_clock(path: GaussianPath, t: Tensor, like: Tensor) -> tuple[Tensor, Tensor]:
    """alpha + sigma and c at times t, viewed so that they broadcast over ``like``."""
    alpha, sigma = path.coefficients(t, like)
    return alpha + sigma, sigma / (alpha + sigma)


def velocity(y: Tensor, c: Tensor, clean: Tensor) -> Tensor:
    """dy/dc = noise - clean data; c must be above 0."""
    return (y - clean) / c
