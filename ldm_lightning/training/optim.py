"""Optimizer and learning-rate schedule of a stage."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import pytorch_lightning as pl
from pytorch_lightning.utilities.types import OptimizerLRSchedulerConfig
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

__all__ = ["Constant", "Cosine", "LearningRate", "MakeOptimizer", "configure"]

MakeOptimizer = Callable[[Iterable[nn.Parameter] | Iterable[dict[str, Any]]], Optimizer]


class LearningRate(Protocol):
    """A learning-rate schedule: the factor on the optimizer's own rate."""

    def __call__(self, step: int, total: float) -> float:
        """Factor at optimizer step ``step`` (from 0) of ``total``, which is inf for endless training."""
        ...


@dataclass(frozen=True)
class Constant:
    """Linear rise over ``warmup`` optimizer steps, then constant."""

    warmup: int = 0

    def __call__(self, step: int, total: float) -> float:
        """Factor at ``step``."""
        return min(1.0, (step + 1) / (self.warmup + 1))


@dataclass(frozen=True)
class Cosine:
    """Linear rise over ``warmup`` optimizer steps, then half a cosine down to ``final`` at the last step."""

    warmup: int = 0
    final: float = 0.0

    def __call__(self, step: int, total: float) -> float:
        """Factor at ``step`` of ``total``."""
        if step < self.warmup:
            return (step + 1) / (self.warmup + 1)
        done = min(1.0, (step - self.warmup) / max(1.0, total - self.warmup))
        return self.final + (1 - self.final) * 0.5 * (1 + math.cos(math.pi * done))


def configure(
    module: pl.LightningModule,
    groups: Sequence[dict[str, Any]],
    optimizer: MakeOptimizer,
    learning_rate: LearningRate,
) -> OptimizerLRSchedulerConfig:
    """One optimizer of parameter ``groups`` with a schedule over the trainer's whole run, stepped every step."""
    made = optimizer(groups)
    total = float(module.trainer.estimated_stepping_batches)
    schedule = LambdaLR(made, lambda step: learning_rate(step, total))
    return {"optimizer": made, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}
