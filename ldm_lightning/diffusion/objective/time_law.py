r"""Training times: a draw gives every sample a uniform number, a law makes of it a time.

A law is the quantile function of its distribution, so that evenly spread numbers make evenly spread times.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from ldm_lightning.diffusion.schedule import Schedule
from ldm_lightning.rng import Streams

__all__ = [
    "DiscreteUniform",
    "Draw",
    "LogNormal",
    "LogitNormal",
    "TimeLaw",
    "Uniform",
    "independent",
    "low_discrepancy",
]


# Gives every sample of a batch, (B,), its float32 in [0, 1): a function of seed, epoch and sample alone.
Draw = Callable[[Streams], Tensor]


class TimeLaw(Protocol):
    """A distribution of training times."""

    def __call__(self, uniform: Tensor, schedule: Schedule) -> Tensor:
        """Map (B,) uniforms in [0, 1) to (B,) times in (0, 1]."""
        ...


def independent(streams: Streams) -> Tensor:
    """(B,) numbers, each independent of all others."""
    return streams.uniform("time")


def low_discrepancy(streams: Streams) -> Tensor:
    r"""(B,) evenly spread numbers: :math:`u = (i \phi + e \psi + shift) \bmod 1` for sample i in epoch e.

    A Kronecker sequence in both directions, with :math:`\phi` the golden ratio and :math:`\psi = \sqrt 2`: within an
    epoch the numbers of all samples are spread evenly over [0, 1), and so are those of one sample over the epochs. Runs
    of neighbouring samples are too, hence every batch in validation. The shift is uniform and belongs to the seed, so
    each number alone is uniform.

    The usual way (Kingma et al. 2021, appendix I.1) spreads the numbers of one batch by their place in it, so that they
    depend on how it is split. Here they do not; the price is that a batch of a *shuffled* epoch, taken by itself, is
    spread no better than independent numbers.
    """
    # Integers, in units of 2^-32, wrap around exactly, whatever the sample's number. One shift serves all samples.
    shift = (Streams(streams.seed, torch.zeros_like(streams.index[:1])).uniform("low_discrepancy") * 2**32).long()
    turns = streams.index.long() * 0x9E3779B9 + streams.epoch * 0x6A09E667 + shift
    return ((turns & 0xFFFFFFFF) >> 8).float() * 2.0**-24


@dataclass(frozen=True)
class Uniform:
    """t uniform in (0, 1]."""

    def __call__(self, uniform: Tensor, schedule: Schedule) -> Tensor:
        """Map (B,) uniforms in [0, 1) to (B,) times in (0, 1]."""
        return 1 - uniform


@dataclass(frozen=True)
class DiscreteUniform:
    """t uniform over k / steps, k = 1 .. steps: the times of a DDPM table (Ho et al. 2020)."""

    steps: int = 1000

    def __call__(self, uniform: Tensor, schedule: Schedule) -> Tensor:
        """Map (B,) uniforms in [0, 1) to (B,) times in (0, 1]."""
        return ((uniform * self.steps).floor() + 1) / self.steps


@dataclass(frozen=True)
class LogitNormal:
    """logit(t) ~ N(mean, std^2): more training in the middle of the path (Esser et al. 2024, section 3.1)."""

    mean: float = 0.0
    std: float = 1.0

    def __call__(self, uniform: Tensor, schedule: Schedule) -> Tensor:
        """Map (B,) uniforms in [0, 1) to (B,) times in (0, 1)."""
        return torch.nn.functional.logsigmoid(self.mean + self.std * _standard_normal(uniform)).exp()


@dataclass(frozen=True)
class LogNormal:
    """log(sigma / alpha) ~ N(mean, std^2), EDM's law of noise levels (Karras et al. 2022, table 1).

    Levels beyond the schedule's last are trained at t = 1, which would be many if the law does not fit the schedule.
    """

    mean: float = -1.2
    std: float = 1.2

    def __call__(self, uniform: Tensor, schedule: Schedule) -> Tensor:
        """Map (B,) uniforms in [0, 1) to (B,) times in (0, 1]."""
        level = self.mean + self.std * _standard_normal(uniform)
        return schedule.time(-2 * level).clamp(min=2.0**-24)


def _standard_normal(uniform: Tensor) -> Tensor:
    """The quantiles of N(0, 1)."""
    # A 24-bit uniform may be exactly 0, whose quantile is -inf.
    quantile: Tensor = torch.special.ndtri(uniform.clamp(2.0**-25, 1 - 2.0**-24))
    return quantile
