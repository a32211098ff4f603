r"""The objective: at which times a network is trained, how each counts, and how often the condition is withheld.

.. math:: L = E_{t \sim p(t)} \; w(t) \; \| F(z_t, t) - F^*(z_0, \epsilon, t) \|^2
"""

from ldm_lightning.diffusion.objective.objective import Objective
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

__all__ = [
    "P2",
    "DiscreteUniform",
    "Draw",
    "EdmWeight",
    "Elbo",
    "LogNormal",
    "LogitNormal",
    "MinSnr",
    "Objective",
    "Sigmoid",
    "SoftMinSnr",
    "TimeLaw",
    "Uniform",
    "Unit",
    "Weighting",
    "independent",
    "low_discrepancy",
]
