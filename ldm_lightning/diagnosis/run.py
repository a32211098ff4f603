"""A run as it has been logged: what all checks look at."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

__all__ = ["Figure", "Points", "Run", "Trial", "ends"]

Points = Sequence[tuple[int, float]]


@dataclass(frozen=True)
class Figure:
    """A value, the number of samples behind it if that was logged, and the optimizer steps done by then."""

    value: float
    step: int
    n: int | None = None

    def __str__(self) -> str:
        samples = "" if self.n is None else f" @{self.n}"
        return f"{self.value:.4g}{samples} (step {self.step})"


@dataclass(frozen=True)
class Trial:
    """What the exported model does, measured when the run is looked at.

    Attributes:
        validation: items of the validation set.
        errors: (n,) of some of them, what validation takes the mean of.
        real: (n, C, *space) standardized latents of validation items; of a second stage.
        drawn: (n, C, *space) latents drawn under those items' conditions by the run's sampler, without guidance.
        missing: why there are no latents, in words.
    """

    validation: int
    errors: Tensor
    real: Tensor | None = None
    drawn: Tensor | None = None
    missing: str = ""


@dataclass(frozen=True)
class Run:
    """What a run folder holds.

    Attributes:
        config: resolved, plain values.
        curves: (step, value) points by metric, as in ``metrics.csv``, where step counts those before the logged one.
        statistics: of the latents, from the artifact of a first stage.
        finished: whether all steps were made and the artifact was written.
        running: whether a command is at work in the folder just now.
        resumable: whether there is a checkpoint.
        trial: of the exported model; or in words why nothing is.
    """

    config: Mapping[str, Any]
    curves: Mapping[str, Points] = field(default_factory=dict)
    statistics: Mapping[str, Any] | None = None
    finished: bool = False
    running: bool = False
    resumable: bool = False
    trial: Trial | str = "no model has been exported yet"

    @property
    def stage(self) -> str:
        """The name of the stage."""
        return str(self.config["stage"])

    @property
    def learns_latents(self) -> bool:
        """Whether it trains an autoencoder, and no denoiser."""
        return "denoiser" not in self.config

    @property
    def steps(self) -> int:
        """Optimizer steps done, as far as the log tells."""
        return max((points[-1][0] + 1 for points in self.curves.values() if points), default=0)

    def setting(self, key: str, default: Any = None) -> Any:
        """The value of a dotted configuration key."""
        node: Any = self.config
        for name in key.split("."):
            if not isinstance(node, Mapping) or node.get(name) is None:
                return default
            node = node[name]
        return node

    @property
    def bottleneck(self) -> str:
        """Class of the first stage's bottleneck, such as ``Gaussian``; empty if there is none here."""
        target = self.setting("first_stage.autoencoder.bottleneck._target_", "")
        return str(target).rpartition(".")[2]

    def curve(self, name: str) -> tuple[Points, int | None]:
        """Points of a metric, logged as ``name`` or ``name@N``, and that N: the one that was logged last."""
        exact = re.compile(rf"{re.escape(name)}(?:@(\d+)(?:_too_few)?)?")
        found = [(points, match) for key, points in self.curves.items() if points and (match := exact.fullmatch(key))]
        if not found:
            return (), None
        points, match = max(found, key=lambda one: one[0][-1][0])
        return points, int(match[1]) if match[1] else None

    def last(self, name: str) -> Figure | None:
        """The last value of a metric, or None if it was never logged."""
        points, n = self.curve(name)
        return Figure(points[-1][1], points[-1][0] + 1, n) if points else None

    def series(self, name: str) -> list[Figure]:
        """The last values of ``name/0``, ``name/1``, ..., one for each channel."""
        found: list[Figure] = []
        while figure := self.last(f"{name}/{len(found)}"):
            found.append(figure)
        return found


def ends(points: Points, first: float = 0.1, last: float = 0.1) -> tuple[float, float]:
    """The mean value over the ``first`` and over the ``last`` share of ``points``, of at least three each."""
    values = [value for _, value in points]
    head, tail = (min(len(values), max(3, round(share * len(values)))) for share in (first, last))
    return sum(values[:head]) / head, sum(values[-tail:]) / tail
