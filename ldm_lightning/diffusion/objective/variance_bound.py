"""The term that trains a learned variance."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from ldm_lightning.diffusion.learned_variance import fraction_of, step_nats
from ldm_lightning.diffusion.needs import Needs
from ldm_lightning.diffusion.objective.term import Answer
from ldm_lightning.diffusion.path import GaussianPath
from ldm_lightning.errors import UserError

__all__ = ["VarianceBound"]


@dataclass(frozen=True)
class VarianceBound:
    """The variational bound, which learns the variance and leaves the mean alone (Nichol & Dhariwal 2021, eq. 16).

    With the squared error it makes their hybrid loss. A sample's value is ``steps`` times the term of the step that
    starts at its time, so that at the times of a table (:class:`DiscreteUniform`) its mean is the bound, in nats per
    latent dimension and but for its prior term, which no network has a part in.

    Attributes:
        steps: T; a step goes from t to t - 1 / T, and the last one, from below 1.5 / T, to 0.
        weight: in the sum; 0.001 as published.

    Raises:
        UserError: fewer than two steps, or a negative weight.
    """

    needs: ClassVar[Needs] = Needs(paths=(GaussianPath,), variance=True)

    steps: int = 1000
    weight: float = 0.001

    def __post_init__(self) -> None:
        if self.steps < 2 or self.weight < 0:
            raise UserError(
                f"objective.terms: the variance needs steps={self.steps} of at least 2, usually 1000, and "
                f"weight={self.weight} of at least 0, usually 0.001"
            )

    def __call__(self, answer: Answer) -> Tensor:
        """(B,) values."""
        t, step = answer.t.double(), 1 / self.steps
        s = torch.where(t < 1.5 * step, 0.0, t - step)
        path, fraction = answer.denoiser.path, fraction_of(answer.said)
        with torch.no_grad():
            z = path.corrupt(answer.z0, answer.t, answer.noise)
            clean = answer.denoiser.answer(z, answer.t, answer.said)
        nats = step_nats(path, answer.z0, clean, fraction, (s, t, t + step))  # type: ignore[arg-type]  # see its check
        return self.steps * nats.to(answer.said.dtype)
