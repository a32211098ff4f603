r"""Euler ancestral, the sampler of k-diffusion.

With :math:`x = z / \alpha` and :math:`\hat\sigma = \sigma / \alpha`, Euler's method goes down to
:math:`\hat\sigma_{down}` and fresh noise brings it up again to the level of s:

.. math:: \hat\sigma_{up} = \eta \, \hat\sigma_s \sqrt{1 - \hat\sigma_s^2 / \hat\sigma_t^2}, \qquad
          \hat\sigma_{down}^2 = \hat\sigma_s^2 - \hat\sigma_{up}^2 .

Multiplied by :math:`\alpha_s` these are the two standard deviations of DDIM (Song, Meng & Ermon 2021, eq. 12 and 16):
it is the same method in other letters, and at eta = 1 the same as DDPM.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from ldm_lightning.diffusion.denoised import Denoise
from ldm_lightning.diffusion.needs import Needs
from ldm_lightning.diffusion.path import GaussianPath
from ldm_lightning.diffusion.sampler.ddim import DDIM
from ldm_lightning.diffusion.sampler.grid import Grid, uniform_grid
from ldm_lightning.diffusion.sampler.part import WHOLE, Part
from ldm_lightning.rng import Streams

__all__ = ["EulerAncestral"]


@dataclass(frozen=True)
class EulerAncestral:
    """First order, stochastic; :class:`DDIM` by another name and with another default.

    Attributes:
        steps: number of steps, equal to the number of network evaluations.
        eta: factor in [0, 1] on the fresh noise.
        grid: times of the steps.
    """

    needs: ClassVar[Needs] = Needs(paths=(GaussianPath,))

    steps: int = 50
    eta: float = 1.0
    grid: Grid = uniform_grid

    def __post_init__(self) -> None:
        DDIM(self.steps, self.eta)  # the same bounds

    @property
    def evaluations(self) -> int:
        """Exact number of network evaluations."""
        return self.steps

    def __call__(self, denoise: Denoise, path: GaussianPath, z: Tensor, streams: Streams, part: Part = WHOLE) -> Tensor:
        """Turn ``z`` (B, C, *space) at the start of ``part`` into latents of the same shape at its stop."""
        return DDIM(self.steps, self.eta, self.grid)(denoise, path, z, streams, part)
