"""Autoguidance: away from a worse model of the same data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import Tensor

from ldm_lightning.diffusion.denoised import Denoised, Guided, Level
from ldm_lightning.diffusion.denoiser import Denoiser
from ldm_lightning.diffusion.guidance.interval import Interval
from ldm_lightning.diffusion.guidance.rescale import check_rescale
from ldm_lightning.diffusion.guidance.steer import Contrast, plain, steer

__all__ = ["Autoguidance"]


@dataclass(frozen=True)
class Autoguidance:
    """Guidance by a bad version of the model, smaller or less trained, under the same condition (Karras et al. 2024).

    What the two models get wrong alike points away from the data; no null condition takes part.

    Attributes:
        other: the worse model, of the same latents on the same path; it may make another prediction.
        scale: 1 the model alone, 0 the worse one alone; any other value costs one evaluation of each.
        rescale: phi of :func:`~ldm_lightning.diffusion.guidance.rescale.rescaled`; 0 for none.
        interval: where to guide; None for everywhere.
        name: of the worse model, for protocols.
    """

    other: Denoiser = field(repr=False)
    scale: float = 1.0
    rescale: float = 0.0
    interval: Interval | None = None
    name: str = ""

    def __post_init__(self) -> None:
        check_rescale(self.rescale)

    def __call__(self, denoiser: Denoiser, condition: Mapping[str, Tensor]) -> Guided:
        """Return the guided denoise function."""
        for parameter in denoiser.parameters():
            self.other.to(parameter.device)  # no submodule of the model in training, so nobody else moves it
            break
        towards, away = plain(denoiser, condition), plain(self.other, condition)

        def both(z: Tensor, level: Level, estimate: Tensor | None) -> tuple[Denoised, Denoised]:
            return towards(z, level, estimate), away(z, level, estimate)

        return steer(Contrast(towards, away, both), self.scale, self.rescale, self.interval)
