r"""The levels of noise a sampler passes through, as plain numbers, known before the first step.

A sampler's coefficients depend on the schedule and the times of its steps only, never on the latents. They are computed
for the whole trajectory in double precision on the host, before the loop, so that a step costs a few elementwise
operations on the latents and never waits for the device.

Most methods combine what they have linearly: with the clean data :math:`\hat z_0` predicted at time t,

.. math:: z_s = a z_t + b \hat z_0 + f \epsilon .

What they share is the step in half log-SNR, :math:`\lambda = \log(\alpha / \sigma)`,

.. math:: h = \lambda_s - \lambda_t, \qquad e^{-h} = \frac{\alpha_t \sigma_s}{\sigma_t \alpha_s},

which is infinite from a start without signal (:math:`\alpha_t = 0`) and to the clean end (:math:`\sigma_s = 0`);
:math:`e^{-h} = 0` then, and every formula written with it stays finite.
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable
from itertools import pairwise
from typing import Any, TypeVar, cast

import torch
from torch import Tensor, nn

from ldm_lightning.diffusion.denoised import Denoise, Denoised, Level
from ldm_lightning.diffusion.path import GaussianPath
from ldm_lightning.diffusion.sampler.grid import Grid
from ldm_lightning.diffusion.sampler.part import WHOLE, Part
from ldm_lightning.diffusion.schedule import Schedule
from ldm_lightning.errors import UserError
from ldm_lightning.rng import Streams

__all__ = [
    "FreshNoise",
    "Level",
    "Scale",
    "coordinates",
    "flow_scale",
    "full_precision",
    "host",
    "level_at",
    "levels",
    "signal_scale",
    "step_size",
    "trajectory",
]


_Call = TypeVar("_Call", bound=Callable[..., Tensor])


def _narrow(denoise: Denoise, asked: torch.dtype, answered: torch.dtype) -> Denoise:
    """``denoise``, asked in one precision and answering in another."""

    def narrow(z: Tensor, level: Level) -> Denoised:
        answer = denoise(z.to(asked), level)
        fraction = answer.variance_fraction
        return Denoised(answer.clean.to(answered), None if fraction is None else fraction.to(answered))

    return narrow


def full_precision(call: _Call) -> _Call:
    """Of a sampler's ``__call__``: from latents in half precision it steps in float32, and answers in theirs.

    Only the denoiser is asked in half precision. The steps of many are smaller than bfloat16 resolves: from 1 it knows
    no step below 0.004, and a sampler of hundreds would stand still.
    """

    @functools.wraps(call)
    def sample(
        sampler: Any, denoise: Denoise, path: Any, z: Tensor, streams: Streams, *part: Part, **named: Part
    ) -> Tensor:
        wide = torch.promote_types(z.dtype, torch.float32)
        if wide == z.dtype:
            return call(sampler, denoise, path, z, streams, *part, **named)
        return call(sampler, _narrow(denoise, z.dtype, wide), path, z.to(wide), streams, *part, **named).to(z.dtype)

    return cast(_Call, sample)


def host(schedule: Schedule) -> Schedule:
    """The schedule on the CPU, whatever device the model is on; tables are small."""
    return copy.deepcopy(schedule).cpu() if isinstance(schedule, nn.Module) else schedule


def levels(schedule: Schedule, times: Tensor, z: Tensor) -> list[Level]:
    """The levels at ``times``, float64 on the CPU like ``schedule``, for the latents ``z`` (B, C, *space)."""
    # One transfer; times closer than bfloat16 can tell must not merge.
    clock = times.to(z.device, torch.promote_types(z.dtype, torch.float32))[:, None].expand(-1, z.shape[0])
    return [Level(time, *row) for time, row in zip(clock, _numbers(schedule, times), strict=True)]


def level_at(schedule: Schedule, time: Tensor) -> Level:
    """The level of a ``time`` (B,) that only the device knows, which has to be waited for; ``schedule`` on the CPU."""
    (row,) = _numbers(schedule, time[:1].detach().double().cpu())
    return Level(time, *row)


def _numbers(schedule: Schedule, times: Tensor) -> list[list[float]]:
    """Time, alpha, sigma and log-SNR."""
    rows: list[list[float]] = torch.stack([times, *schedule.alpha_sigma(times), schedule.log_snr(times)], 1).tolist()
    return rows


def trajectory(grid: Grid, steps: int, path: GaussianPath, z: Tensor, part: Part = WHOLE) -> list[tuple[Level, Level]]:
    """The two ends (t, s) of every step of a part of the path, from t down to s.

    Raises:
        UserError: fewer than one step.
    """
    if steps < 1:
        raise UserError(f"sampler.steps={steps}: at least one step is needed")
    schedule = host(path.schedule)
    return list(pairwise(levels(schedule, part.of(grid(steps, schedule)), z)))


def step_size(t: Level, s: Level) -> float:
    """h, the step from t down to s in half log-SNR; infinite from pure noise and to clean data."""
    return (s.log_snr - t.log_snr) / 2


class FreshNoise:
    """The noise that a sampler adds in its steps, every sample's from its own stream.

    A small draw costs its launches, not its numbers, so several steps' are made at once. They are the same numbers.

    Args:
        streams: of the samples.
        z: (B, C, *space), what it will be added to.
        part: of the path, whose steps it is drawn for.
    """

    def __init__(self, streams: Streams, z: Tensor, part: Part = WHOLE) -> None:
        self._streams, self._shape, self._part = streams, z.shape[1:], part
        self._together = 16 if z.numel() <= 2**13 else 1
        self._ahead: dict[int, Tensor] = {}

    def add(self, z: Tensor, std: float | Tensor, step: int) -> Tensor:
        """Add noise of standard deviation ``std`` in the step of this number."""
        if not isinstance(std, Tensor) and std == 0:
            return z
        if step not in self._ahead:
            steps = range(step, step + self._together)
            normals = self._streams.normals([self._part.purpose(number) for number in steps], self._shape)
            self._ahead = dict(zip(steps, normals, strict=True))
        return z + std * self._ahead.pop(step).to(z.dtype)


Scale = Callable[[float, float], float]


def flow_scale(alpha: float, sigma: float) -> float:
    """alpha + sigma: the coordinates of the linear flow, regular at both ends of every path."""
    return alpha + sigma


def signal_scale(alpha: float, sigma: float) -> float:
    """alpha: the clock sigma / alpha of Karras et al. 2022, for paths that keep some signal at t = 1."""
    return alpha


def coordinates(level: Level, scale: Scale) -> tuple[float, float]:
    r"""The scale and the clock :math:`c = \sigma / scale` in which a solver walks along the probability-flow ODE.

    For either scale :math:`y = z / scale` obeys :math:`dy / dc = (y - \hat z_0) / c`: with ``signal_scale`` this is the
    noise, with ``flow_scale`` noise minus clean data. The ODE is the same, its discretizations differ.

    Raises:
        UserError: a scale of zero.
    """
    size = scale(level.alpha, level.sigma)
    if size == 0:
        raise UserError("sampler.scale=signal_scale needs some signal at t = 1, this path keeps none: use flow_scale")
    return size, level.sigma / size
