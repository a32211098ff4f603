r"""How power is spread over spatial frequencies, in octaves.

Latents that hold more fine detail than pictures do are harder to diffuse, since noise hides fine detail first and
sampling begins with coarse structure (Skorokhodov et al. 2025, "Improving the diffusability of autoencoders").

A map of one channel is transformed by an FFT over all its spatial axes. A component of :math:`f` cycles a place, with
:math:`f` the length of its frequency vector, has the wavelength :math:`1 / f` places and belongs to the octave that is
named after its shortest wavelength: octave 2 holds those of 2 to below 4 places, and everything finer (the corners of
the frequency plane, to :math:`\sqrt 2` times the Nyquist frequency); octave 4 those of 4 to below 8, and so on.
The component of frequency 0, the mean of a map, belongs to none.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric

__all__ = ["OCTAVES", "Spectrum", "octaves"]

OCTAVES = tuple(2**k for k in range(1, 13))  # by shortest wavelength in places, up to maps of 8,191 places a side


def octaves(space: Sequence[int]) -> Tensor:
    """The number, in :data:`OCTAVES`, of the octave of every component of an FFT over ``space``; -1 for the mean."""
    axes = torch.meshgrid(*(torch.fft.fftfreq(side, dtype=torch.float64) for side in space), indexing="ij")
    frequency = torch.stack([axis.square() for axis in axes]).sum(0).sqrt()
    # The tiny offset keeps exact octaves, such as sqrt(0.15^2 + 0.2^2), from rounding to the finer side.
    number = torch.floor(-torch.log2(2 * frequency.clamp(min=1e-12)) + 1e-9).clamp(0, len(OCTAVES) - 1)
    return torch.where(frequency > 0, number, -1).long()


class Spectrum(Metric):
    """Power of maps by octave, summed in float64 over batches and ranks.

    Args:
        channels: of the maps; each has a spectrum of its own.
    """

    full_state_update = False
    power: Tensor
    components: Tensor

    def __init__(self, channels: int, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.add_state("power", torch.zeros(channels, len(OCTAVES), dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("components", torch.zeros(len(OCTAVES), dtype=torch.float64), dist_reduce_fx="sum")

    def update(self, maps: Tensor) -> None:
        """Add maps (B, C, *space); the power of a map is its variance over space (Parseval)."""
        axes = tuple(range(2, maps.ndim))
        centred = maps.float() - maps.float().mean(axes, keepdim=True)
        places = octaves(maps.shape[2:]).to(maps.device).flatten()
        kept = places >= 0
        power = torch.fft.fftn(centred, dim=axes, norm="forward").abs().square().double().sum(0).flatten(1)
        self.power.index_add_(1, places[kept], power[:, kept])
        self.components.index_add_(0, places[kept], torch.ones_like(power[0, kept]) * len(maps))

    def compute(self) -> tuple[Tensor, Tensor]:
        """(C, octaves) shares of each channel's power, NaN for constant channels; (octaves,) those of white noise.

        Octaves that maps of this size do not have get 0 of both.
        """
        return self.power / self.power.sum(1, keepdim=True), self.components / self.components.sum()
