"""Samplers: from noise to clean latents, one method a file.

Each is a small frozen dataclass called as ``sampler(denoise, path, z, streams)``:

- ``denoise(z, t)`` answers the clean latents (a guided :class:`~ldm_lightning.diffusion.denoiser.Denoiser`),
- ``path`` is the corruption being undone,
- ``z`` is a draw from ``path.prior``,
- ``streams`` gives each sample its own noise, so a sample does not depend on the batch it is made in.

``sampler.evaluations`` is the exact number of calls of ``denoise``, for every number of steps.
"""

from ldm_lightning.diffusion.sampler.ddim import DDIM
from ldm_lightning.diffusion.sampler.ddpm import DDPM
from ldm_lightning.diffusion.sampler.euler import Euler
from ldm_lightning.diffusion.sampler.flow_coordinates import scale_and_clock, velocity
from ldm_lightning.diffusion.sampler.grid import Sampler, flow_grid, time_pairs, uniform_grid
from ldm_lightning.diffusion.sampler.heun import Heun

__all__ = [
    "DDIM",
    "DDPM",
    "Euler",
    "Heun",
    "Sampler",
    "flow_grid",
    "scale_and_clock",
    "time_pairs",
    "uniform_grid",
    "velocity",
]
