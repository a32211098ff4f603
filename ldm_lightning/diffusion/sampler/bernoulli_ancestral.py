"""Ancestral sampling of bits, for any number of steps (Sohl-Dickstein et al. 2015; Austin et al. 2021, section 3.3)."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import ClassVar

import torch
from torch import Tensor

from ldm_lightning.diffusion.denoised import Denoise, Level
from ldm_lightning.diffusion.needs import Needs
from ldm_lightning.diffusion.path import BernoulliPath
from ldm_lightning.diffusion.path.bernoulli import bits
from ldm_lightning.diffusion.sampler.part import WHOLE, Part
from ldm_lightning.errors import UserError
from ldm_lightning.rng import Streams

__all__ = ["BernoulliAncestral"]


@dataclass(frozen=True)
class BernoulliAncestral:
    """Draw z_s from p(z_s | z_t), see :meth:`BernoulliPath.step`; the last step draws z_0 from p(z_0 | z_t).

    Bits are drawn independently of each other in every step, so correlated data are reached as the steps get many. For
    a single bit any number of steps is exact.

    Attributes:
        steps: number of steps, evenly spaced in time, equal to the number of network evaluations.
    """

    needs: ClassVar[Needs] = Needs(paths=(BernoulliPath,))

    steps: int = 100

    @property
    def evaluations(self) -> int:
        """Exact number of network evaluations."""
        return self.steps

    def __call__(
        self, denoise: Denoise, path: BernoulliPath, z: Tensor, streams: Streams, part: Part = WHOLE
    ) -> Tensor:
        """Turn bits ``z`` (B, C, *space) at the start of ``part`` into bits at its stop; ``denoise`` answers logits.

        Raises:
            UserError: fewer than one step.
        """
        if self.steps < 1:
            raise UserError(f"sampler.steps={self.steps}: at least one step is needed")
        times = part.of(torch.linspace(1, 0, self.steps + 1, dtype=torch.float64))
        # One transfer; times closer than bfloat16 can tell must not merge.
        clock = times.to(z.device, torch.promote_types(z.dtype, torch.float32))[:, None].expand(-1, z.shape[0])
        for step, (t, s) in enumerate(pairwise(times.tolist())):
            one = path.step(z, denoise(z, Level(clock[step], t)).clean, s, t)
            z = bits(streams.uniform(part.purpose(step), z.shape[1:]) < one, z)
        return z
