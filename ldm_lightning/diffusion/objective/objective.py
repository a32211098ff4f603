"""The objective of a training run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from ldm_lightning.diffusion.denoiser import Denoiser
from ldm_lightning.diffusion.objective.time_law import Draw, TimeLaw, independent
from ldm_lightning.diffusion.objective.weighting import Weighting
from ldm_lightning.errors import UserError
from ldm_lightning.rng import Streams

__all__ = ["Objective"]


@dataclass(frozen=True)
class Objective:
    """Time law, weighting and condition dropout of a training run.

    Attributes:
        time_law: distribution of t.
        weighting: weight of each sample's loss.
        condition_dropout: probability in [0, 1] that a sample's condition is replaced by the null condition, which
            classifier-free guidance needs (Ho & Salimans 2022); usually 0.1.
        draw: of the numbers that the law makes times of.
    """

    time_law: TimeLaw
    weighting: Weighting
    condition_dropout: float = 0.1
    draw: Draw = independent

    def __post_init__(self) -> None:
        if not 0 <= self.condition_dropout <= 1:
            raise UserError(f"objective.condition_dropout={self.condition_dropout} is a probability: set 0 to 1")

    def loss(self, denoiser: Denoiser, z0: Tensor, condition: Mapping[str, Tensor], streams: Streams) -> Tensor:
        """(B,) weighted losses of the clean latents ``z0`` at random times.

        Args:
            denoiser: the network in training.
            z0: (B, C, *space) standardized latents.
            condition: tensors by name, first dimension B.
            streams: where t, noise and dropout of each sample come from.
        """
        t = self.time_law(self.draw(streams), denoiser.path.schedule)
        noise = denoiser.path.noise(streams, z0.shape[1:])
        drop = streams.uniform("drop") < self.condition_dropout
        output = denoiser(denoiser.path.corrupt(z0, t, noise), t, condition, drop)
        return self.weighting(denoiser, t) * denoiser.path.loss(output, denoiser.target(z0, noise, t))
