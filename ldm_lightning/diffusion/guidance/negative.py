"""Guidance away from another condition: a "negative prompt", a class not to be mistaken for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ldm_lightning.diffusion.denoised import Guided
from ldm_lightning.diffusion.denoiser import Denoiser
from ldm_lightning.diffusion.guidance.interval import Interval
from ldm_lightning.diffusion.guidance.rescale import check_rescale
from ldm_lightning.diffusion.guidance.steer import one_network, steer
from ldm_lightning.errors import UserError, nearest

__all__ = ["NegativeCondition"]


@dataclass(frozen=True)
class NegativeCondition:
    """Classifier-free guidance with another condition in the place of none (cf. Liu et al. 2022, section 4.2).

    Attributes:
        scale: 1 the condition alone, 0 the negative one alone; any other value costs one evaluation of 2 B samples.
        condition: what to guide away from, the same for all samples, by name: a class number, or the encoded bytes of
            a caption. Conditions that are not named stay those of the sample. Empty: no condition, which is
            :class:`~ldm_lightning.diffusion.guidance.classifier_free.ClassifierFree`.
        rescale: phi of :func:`~ldm_lightning.diffusion.guidance.rescale.rescaled`; 0 for none.
        interval: where to guide; None for everywhere.
    """

    scale: float = 1.0
    condition: Mapping[str, int | Sequence[int]] = field(default_factory=dict)
    rescale: float = 0.0
    interval: Interval | None = None

    def __post_init__(self) -> None:
        check_rescale(self.rescale)

    def __call__(self, denoiser: Denoiser, condition: Mapping[str, Tensor]) -> Guided:
        """Return the guided denoise function.

        Raises:
            UserError: a name that the samples' conditions do not have.
        """
        away = dict(condition)
        for name, value in self.condition.items():
            if name not in condition:
                raise UserError(f"the negative condition '{name}' is none of the samples'{nearest(name, condition)}")
            like = condition[name]
            away[name] = torch.as_tensor(value, dtype=like.dtype, device=like.device).expand_as(like)
        contrast = one_network(denoiser, condition, away, drop=not self.condition)
        return steer(contrast, self.scale, self.rescale, self.interval)
