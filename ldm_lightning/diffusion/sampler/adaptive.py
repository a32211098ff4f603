r"""The probability-flow ODE to a given tolerance, by the adaptive solvers of torchdiffeq, and gradients through it.

Solved in flow coordinates (see :mod:`~ldm_lightning.diffusion.sampler.flow_coordinates`) over the progress
:math:`p = c(1) - c`, from 0 up to the clock ``last`` before the clean end, where the slope is 0 / 0. One more
evaluation answers the clean data from there, with an error of the order of last^2. Every evaluation lies inside
this interval: both ends are given to the solver as ``step_t``, which it never steps across, and a first step that it
would else find by a probe. That step, a constant, is also why gradients through the steps are exact: no step size
depends on the latents differentiably.

The error is measured per sample, by its root mean square, and the worst sample decides: every sample is as exact as
asked for in any batch. Batches of another split take other steps and agree to the tolerance, not to the bit.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from ldm_lightning.diffusion.denoised import Denoise
from ldm_lightning.diffusion.needs import Needs
from ldm_lightning.diffusion.path import GaussianPath
from ldm_lightning.diffusion.sampler.flow_coordinates import scale_and_clock, velocity
from ldm_lightning.diffusion.sampler.part import WHOLE, Part
from ldm_lightning.diffusion.sampler.trajectory import full_precision, host, level_at
from ldm_lightning.diffusion.schedule import flow_time
from ldm_lightning.errors import UserError, nearest
from ldm_lightning.rng import Streams

__all__ = ["AdaptiveODE"]

SLOPES = {"dopri5": 6, "dopri8": 13, "bosh3": 3, "fehlberg2": 2, "adaptive_heun": 1}  # evaluations a step, by method


class _Field(nn.Module):
    """dy/dp; a module, so that the adjoint method finds the parameters of a denoiser that is one."""

    def __init__(self, denoise: Denoise, path: GaussianPath, first: Tensor, last: Tensor) -> None:
        super().__init__()
        self.denoise, self.path, self.first, self.last = denoise, path, first, last
        self.schedule = host(path.schedule)

    def forward(self, progress: Tensor, y: Tensor) -> Tensor:
        """Minus dy/dc at the clock c = first - progress."""
        # No gradient by time: at pure noise that of log-SNR is infinite. The bounds hold back rounding alone.
        clock = torch.minimum(self.first - progress.detach(), self.first).clamp(min=self.last)
        return -velocity(y, clock, self.clean(clock, y))

    def clean(self, clock: Tensor, y: Tensor) -> Tensor:
        """The clean data, given y at a clock."""
        t = flow_time(self.path.schedule, clock).expand(len(y))
        return self.denoise(scale_and_clock(self.path, t, y)[0] * y, level_at(self.schedule, t)).clean


def _worst(error: Tensor) -> Tensor:
    """The largest root mean square of any sample."""
    return error.flatten(1).square().mean(1).max().sqrt()


@dataclass(frozen=True)
class AdaptiveODE:
    """As many evaluations as the tolerance takes; for references, and for gradients through sampling.

    Attributes:
        steps: the most steps the solver may try; where they do not suffice, it gives up.
        method: dopri5, dopri8, bosh3, fehlberg2 or adaptive_heun.
        rtol: relative tolerance of a step.
        atol: absolute tolerance of a step.
        adjoint: take gradients by solving the adjoint ODE backwards (Chen et al. 2018), in memory that does not grow
            with the number of steps, instead of through the steps made. They reach the start, and the parameters of
            ``denoise`` if it is an ``nn.Module``; whatever else a plain function closes over is a constant.
        last: sigma / (alpha + sigma) from which the clean data are answered at once.
    """

    needs: ClassVar[Needs] = Needs(paths=(GaussianPath,), memoryless=True)

    steps: int = 100
    method: str = "dopri5"
    rtol: float = 1e-5
    atol: float = 1e-5
    adjoint: bool = False
    last: float = 1e-3

    def __post_init__(self) -> None:
        if self.method not in SLOPES:
            raise UserError(
                f"sampler.method={self.method} is none of {', '.join(SLOPES)}{nearest(self.method, SLOPES)}"
            )

    @property
    def evaluations(self) -> int:
        """The most network evaluations one call can make; how many it does make depends on the data."""
        return SLOPES[self.method] * self.steps + 2  # one at the start, one for the clean data

    @full_precision
    def __call__(self, denoise: Denoise, path: GaussianPath, z: Tensor, streams: Streams, part: Part = WHOLE) -> Tensor:
        """Turn ``z`` (B, C, *space) at the start of ``part`` into latents of the same shape at its stop.

        Raises:
            UserError: the tolerance is not met within the allowed steps.
        """
        from torchdiffeq import odeint, odeint_adjoint  # brings scipy, a second that only this sampler should cost

        if self.steps < 1:
            raise UserError(f"sampler.steps={self.steps}: at least one step is needed")
        scale, first = scale_and_clock(path, z.new_full((1,), part.start), z[0, :1])
        final, last = scale_and_clock(path, z.new_full((1,), part.stop), z[0, :1])
        if part.stop == 0:
            last = torch.minimum(last.new_full((), self.last), first / 2)
        field = _Field(denoise, path, first.squeeze(), last.squeeze())
        ends = torch.stack([torch.zeros_like(field.first), field.first - field.last])
        options = {"first_step": 0.05 * ends[1], "step_t": ends, "max_num_steps": self.steps, "norm": _worst}
        solve = odeint_adjoint if self.adjoint else odeint
        try:
            y = solve(field, z / scale, ends, rtol=self.rtol, atol=self.atol, method=self.method, options=options)[-1]
        except AssertionError as error:
            raise UserError(f"sampler.steps={self.steps} do not reach sampler.rtol={self.rtol} ({error})") from error
        return final * y if part.stop else field.clean(field.last, y)
