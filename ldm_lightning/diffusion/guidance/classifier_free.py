"""Classifier-free guidance: away from no condition at all."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from ldm_lightning.diffusion.denoised import Guided
from ldm_lightning.diffusion.denoiser import Denoiser
from ldm_lightning.diffusion.guidance.interval import Interval
from ldm_lightning.diffusion.guidance.rescale import check_rescale
from ldm_lightning.diffusion.guidance.steer import one_network, steer

__all__ = ["ClassifierFree"]


@dataclass(frozen=True)
class ClassifierFree:
    """Classifier-free guidance (Ho & Salimans 2022); the network must have been trained with condition dropout.

    Attributes:
        scale: 1 conditional, 0 unconditional; both cost one network evaluation of B samples. Any other value costs one
            evaluation of 2 B samples.
        rescale: phi of :func:`~ldm_lightning.diffusion.guidance.rescale.rescaled`; 0 for none.
        interval: where to guide; None for everywhere.
    """

    scale: float = 1.0
    rescale: float = 0.0
    interval: Interval | None = None

    def __post_init__(self) -> None:
        check_rescale(self.rescale)

    def __call__(self, denoiser: Denoiser, condition: Mapping[str, Tensor]) -> Guided:
        """Return the guided denoise function."""
        contrast = one_network(denoiser, condition, condition, drop=True)
        return steer(contrast, self.scale, self.rescale, self.interval)
