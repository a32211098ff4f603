r"""Noise schedules: how much signal and how much noise a latent holds at time t, one family a file.

A schedule maps time t in [0, 1] (0 is clean, 1 is noise) to the two coefficients of

.. math:: z_t = \alpha(t) z_0 + \sigma(t) \epsilon, \qquad \epsilon \sim N(0, I)

and is identified by its log signal-to-noise ratio :math:`\lambda(t) = \log \alpha^2 / \sigma^2`, which falls strictly
with t (Kingma et al. 2021, "Variational diffusion models"), and by its scale, which makes of :math:`\lambda` the pair
:math:`(\alpha, \sigma)`: the sum of their squares is one (variance preserving), their sum is one (linear flow), or
:math:`\alpha` is one (variance exploding). All other rooms ask a schedule only the four methods of :class:`Schedule`.
"""

from ldm_lightning.diffusion.schedule.betas import (
    cosine_betas,
    laplace_betas,
    linear_betas,
    scaled_linear_betas,
    sigmoid_betas,
    zero_terminal_snr,
)
from ldm_lightning.diffusion.schedule.linear_flow import LinearFlow, flow_time
from ldm_lightning.diffusion.schedule.protocol import Schedule
from ldm_lightning.diffusion.schedule.shifted import Shifted
from ldm_lightning.diffusion.schedule.table import TableSchedule
from ldm_lightning.diffusion.schedule.variance_exploding import VarianceExploding
from ldm_lightning.diffusion.schedule.variance_preserving import Trigonometric, VariancePreserving

__all__ = [
    "LinearFlow",
    "Schedule",
    "Shifted",
    "TableSchedule",
    "Trigonometric",
    "VarianceExploding",
    "VariancePreserving",
    "cosine_betas",
    "flow_time",
    "laplace_betas",
    "linear_betas",
    "scaled_linear_betas",
    "sigmoid_betas",
    "zero_terminal_snr",
]
