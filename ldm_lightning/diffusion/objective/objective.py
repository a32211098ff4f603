"""The objective of a training run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from ldm_lightning.diffusion.denoiser import Denoiser
from ldm_lightning.diffusion.objective.importance import LossSecondMoment
from ldm_lightning.diffusion.objective.term import Answer, LossTerm
from ldm_lightning.diffusion.objective.time_law import DiscreteUniform, Draw, TimeLaw, independent
from ldm_lightning.diffusion.objective.weighting import Elbo, Sigmoid, Weighting
from ldm_lightning.diffusion.path import expand
from ldm_lightning.diffusion.self_conditioning import ESTIMATE, first_estimate
from ldm_lightning.errors import UserError
from ldm_lightning.loss import Term, total
from ldm_lightning.rng import Streams

__all__ = ["Objective"]

_TAKEN = ("denoising", "loss", "lr")


@runtime_checkable
class _Advancing(Protocol):
    """A part that changes over training."""

    def advance(self) -> None:
        """End of an optimizer step."""
        ...


class Objective(nn.Module):
    """Times, their weights, the terms of the loss and condition dropout of a training run.

    A module, because some parts have a state that belongs into checkpoints. As in any module, ``training`` says what it
    is used for: in eval mode parts that change over training are replaced by something fixed, so that validation losses
    compare over time.

    Args:
        time_law: distribution of t.
        weighting: weight of each sample's loss; the variational bound's is that of as many steps as the law has times.
        condition_dropout: probability in [0, 1] that a sample's condition is replaced by the null condition, which
            classifier-free guidance needs (Ho & Salimans 2022); usually 0.1.
        draw: of the numbers that the law makes times of.
        self_conditioning: probability in [0, 1) that a sample comes with the network's own first estimate; needs a
            network that reads it (see :mod:`~ldm_lightning.diffusion.self_conditioning`).
        importance: moves those numbers to where the loss is large; None for no importance sampling.
        terms: added to the denoising error, by name.

    Raises:
        UserError: a probability that is none, or a term with a name that is taken.
    """

    def __init__(
        self,
        time_law: TimeLaw,
        weighting: Weighting,
        condition_dropout: float = 0.1,
        draw: Draw = independent,
        *,
        self_conditioning: float = 0.0,
        importance: LossSecondMoment | None = None,
        terms: Mapping[str, LossTerm] | None = None,
    ) -> None:
        super().__init__()
        if not 0 <= condition_dropout <= 1:
            raise UserError(f"objective.condition_dropout={condition_dropout} is a probability: set 0 to 1")
        if not 0 <= self_conditioning < 1:
            raise UserError(
                f"objective.self_conditioning={self_conditioning} is a probability: set it from 0 to below 1, usually "
                "0.5, for the network must also learn to answer without an estimate"
            )
        self.time_law = time_law
        if isinstance(weighting, Elbo | Sigmoid) and isinstance(time_law, DiscreteUniform):
            weighting = replace(weighting, steps=time_law.steps)
        self.weighting = weighting
        self.condition_dropout = condition_dropout
        self.draw = draw
        self.self_conditioning = self_conditioning
        self.importance = importance
        self.terms = dict(terms or {})
        for name in _TAKEN:
            if name in self.terms:
                raise UserError(f"objective.terms.{name}: this name is taken, choose another")

    def loss(self, denoiser: Denoiser, z0: Tensor, condition: Mapping[str, Tensor], streams: Streams) -> Tensor:
        """(B,) losses, the weighted sums of :meth:`losses`, whose arguments it takes."""
        return total(self.losses(denoiser, z0, condition, streams))

    def losses(
        self, denoiser: Denoiser, z0: Tensor, condition: Mapping[str, Tensor], streams: Streams
    ) -> dict[str, Term]:
        """The terms of the losses of the clean latents ``z0`` at random times, (B,) values each.

        Args:
            denoiser: the network in training.
            z0: (B, C, *space) standardized latents.
            condition: tensors by name, first dimension B.
            streams: where t, noise and dropout of each sample come from.
        """
        uniform = self.draw(streams)
        if self.importance is None:
            return self._losses(denoiser, z0, condition, streams, uniform)
        uniform, importance = self.importance(uniform)
        terms = self._losses(denoiser, z0, condition, streams, uniform)
        self.importance.observe(uniform, total(terms))
        return {name: Term(importance * term.value, term.weight) for name, term in terms.items()}

    def _losses(
        self, denoiser: Denoiser, z0: Tensor, condition: Mapping[str, Tensor], streams: Streams, uniform: Tensor
    ) -> dict[str, Term]:
        """The terms at the times that the law makes of ``uniform``."""
        t = self.time_law(uniform, denoiser.path.schedule)
        noise = denoiser.path.noise(streams, z0.shape[1:])
        z = denoiser.path.corrupt(z0, t, noise)
        drop = streams.uniform("drop") < self.condition_dropout
        if self.self_conditioning:
            given = expand(streams.uniform("self_conditioning") < self.self_conditioning, z)
            estimate = torch.where(given, first_estimate(denoiser, z, t, condition, drop), 0.0)
            condition = {**condition, ESTIMATE: estimate}
        said, target = denoiser(z, t, condition, drop), denoiser.target(z0, noise, t)
        answer = Answer(denoiser, z0, noise, t, said, target, self.weighting(denoiser, t))
        terms = {"denoising": Term(answer.weight * denoiser.path.loss(answer.output, target), 1.0)}
        return terms | {name: Term(term(answer), term.weight) for name, term in self.terms.items()}

    def advance(self) -> None:
        """End of an optimizer step: parts that change over training move on. All ranks must call this."""
        for part in self.children():
            if isinstance(part, _Advancing):
                part.advance()
