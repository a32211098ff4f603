"""Samplers: from noise to clean latents, one method a file.

Each is a small frozen dataclass called as ``sampler(denoise, path, z, streams)``:

- ``denoise(z, level)`` is a guided :class:`~ldm_lightning.diffusion.denoiser.Denoiser` and answers what is known of
  the clean latents (:class:`~ldm_lightning.diffusion.denoised.Denoised`): on a Gaussian path their mean, for bits the
  logits of a one, and the variance of a step where it is learned,
- ``path`` is the corruption being undone, of a kind that the class attribute ``needs`` says
  (:class:`~ldm_lightning.diffusion.needs.Needs`),
- ``z`` is a draw from ``path.prior``,
- ``streams`` gives each sample its own noise, so a sample does not depend on the batch it is made in.

It may be told a part of the path, ``sampler(denoise, path, z, streams, Part(start, stop))``, to start from latents
at any time and to stop at any other (:class:`~ldm_lightning.diffusion.sampler.part.Part`).

Latents, and with them the network, may be of any floating dtype, which is also the answer's; coefficients are numbers
in double precision, and no step is taken in less than single
(:func:`~ldm_lightning.diffusion.sampler.trajectory.full_precision`).

``sampler.evaluations`` is the exact number of calls of ``denoise`` along the whole path, for every number of steps
(for the adaptive solver the most it can make).
"""

from ldm_lightning.diffusion.sampler.adaptive import AdaptiveODE
from ldm_lightning.diffusion.sampler.bernoulli_ancestral import BernoulliAncestral
from ldm_lightning.diffusion.sampler.ddim import DDIM
from ldm_lightning.diffusion.sampler.ddpm import DDPM
from ldm_lightning.diffusion.sampler.dpm_solver import DPMSolver2M
from ldm_lightning.diffusion.sampler.edm import EDM
from ldm_lightning.diffusion.sampler.euler import Euler
from ldm_lightning.diffusion.sampler.euler_ancestral import EulerAncestral
from ldm_lightning.diffusion.sampler.grid import (
    Grid,
    Sampler,
    flow_grid,
    karras_grid,
    log_snr_grid,
    quadratic_grid,
    uniform_grid,
)
from ldm_lightning.diffusion.sampler.heun import Heun
from ldm_lightning.diffusion.sampler.part import WHOLE, Part
from ldm_lightning.diffusion.sampler.plms import PLMS
from ldm_lightning.diffusion.sampler.rk4 import RK4
from ldm_lightning.diffusion.sampler.trajectory import coordinates, flow_scale, full_precision, signal_scale, trajectory
from ldm_lightning.diffusion.sampler.unipc import UniPC
from ldm_lightning.diffusion.sampler.variance import learned_variance, lower_variance, upper_variance

__all__ = [
    "DDIM",
    "DDPM",
    "EDM",
    "PLMS",
    "RK4",
    "WHOLE",
    "AdaptiveODE",
    "BernoulliAncestral",
    "DPMSolver2M",
    "Euler",
    "EulerAncestral",
    "Grid",
    "Heun",
    "Part",
    "Sampler",
    "UniPC",
    "coordinates",
    "flow_grid",
    "flow_scale",
    "full_precision",
    "karras_grid",
    "learned_variance",
    "log_snr_grid",
    "lower_variance",
    "quadratic_grid",
    "signal_scale",
    "trajectory",
    "uniform_grid",
    "upper_variance",
]
