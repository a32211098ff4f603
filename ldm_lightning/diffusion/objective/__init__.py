r"""The objective: at which times a network is trained, how each counts, and what else it is told or asked for.

.. math:: L = E_{t \sim p(t)} \; w(t) \; \| F(z_t, t) - F^*(z_0, \epsilon, t) \|^2

Beside time law and weighting: importance sampling of the times, terms added to the denoising error, condition dropout
and self-conditioning.
"""

from ldm_lightning.diffusion.objective.annealed import AnnealedLogitNormal
from ldm_lightning.diffusion.objective.importance import LossSecondMoment
from ldm_lightning.diffusion.objective.objective import Objective
from ldm_lightning.diffusion.objective.term import Answer, Contrastive, LossTerm, VelocityDirection
from ldm_lightning.diffusion.objective.time_law import (
    DiscreteUniform,
    Draw,
    LogitNormal,
    LogNormal,
    TimeLaw,
    Uniform,
    independent,
    low_discrepancy,
)
from ldm_lightning.diffusion.objective.variance_bound import VarianceBound
from ldm_lightning.diffusion.objective.weighting import (
    P2,
    EdmWeight,
    Elbo,
    MinSnr,
    Sigmoid,
    SoftMinSnr,
    Unit,
    Weighting,
)
from ldm_lightning.loss import Term, total

__all__ = [
    "P2",
    "AnnealedLogitNormal",
    "Answer",
    "Contrastive",
    "DiscreteUniform",
    "Draw",
    "EdmWeight",
    "Elbo",
    "LogNormal",
    "LogitNormal",
    "LossSecondMoment",
    "LossTerm",
    "MinSnr",
    "Objective",
    "Sigmoid",
    "SoftMinSnr",
    "Term",
    "TimeLaw",
    "Uniform",
    "Unit",
    "VarianceBound",
    "VelocityDirection",
    "Weighting",
    "independent",
    "low_discrepancy",
    "total",
]
