"""Standardized latents: zero mean and unit standard deviation per channel, from statistics of many pictures.

Bits become -1 and 1, which is the same for fair coins, whatever was measured: a diffusion of bits needs bits, and one
of numbers gets "analog bits" (Chen et al. 2023). Codes of a book are standardized like any numbers.

The diffusion room assumes standardized latents; nobody multiplies by a scale factor by hand.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torchmetrics import Metric

from ldm_lightning.errors import UserError
from ldm_lightning.precision import KeepsPrecision

__all__ = ["BitScale", "CodeScale", "LatentScale", "LatentStatistics", "Scale", "per_channel"]

_OFF = 0.05  # of the spacing; half precision, in a cache of latents, moves pixels of 8 bits by 0.03


class Scale(Protocol):
    """The map between raw latents and those that the diffusion model sees, both (B, C, *space)."""

    def standardize(self, raw: Tensor) -> Tensor:
        """Raw latents -> standardized latents."""
        ...

    def unstandardize(self, z: Tensor) -> Tensor:
        """Standardized latents -> raw latents."""
        ...

    def spacing(self, z: Tensor) -> Tensor | None:
        """(C or 1,) distance of neighbouring standardized latents where they are points of a lattice.

        Args:
            z: (B, C, *space), many of them.

        Returns:
            None where they are continuous.

        Raises:
            UserError: they are discrete, but lie on no lattice.
        """
        ...

    def to(self, device: torch.device | str) -> Any:
        """Move the statistics to ``device``."""
        ...


class BitScale(nn.Module):
    """Bits as two raw values <-> as -1 and 1.

    Args:
        low: the raw value of a bit that is off.
        high: that of one that is on.
    """

    def __init__(self, low: float = 0.0, high: float = 1.0) -> None:
        super().__init__()
        self.low, self.high = low, high

    def standardize(self, raw: Tensor) -> Tensor:
        """``low`` and ``high`` -> exactly -1 and 1."""
        return 2 * (raw > (self.low + self.high) / 2).to(raw.dtype) - 1

    def unstandardize(self, z: Tensor) -> Tensor:
        """-1 and 1 -> ``low`` and ``high``; of analog bits the sign counts, so that a decoder is always given bits."""
        return torch.where(z > 0, self.high, self.low).to(z.dtype)

    def spacing(self, z: Tensor) -> Tensor:
        """From -1 to 1."""
        return torch.full((1,), 2.0)


class LatentScale(KeepsPrecision):
    """The affine map between raw and standardized latents.

    Args:
        mean: (C,) channel means of raw latents.
        std: (C,) channel standard deviations, all above 0.

    Raises:
        UserError: a standard deviation is zero or not finite, i.e. a channel of the first stage has collapsed.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, mean: Tensor, std: Tensor) -> None:
        super().__init__()
        broken = [channel for channel, value in enumerate(std.tolist()) if not 0 < value < float("inf")]
        if broken:
            raise UserError(
                f"latent channels {broken} carry no information (standard deviation {std[broken[0]].item():g}): "
                "train the first stage longer, or lower loss.kl_weight"
            )
        self.register_buffer("mean", mean.float())
        self.register_buffer("std", std.float())

    @classmethod
    def measured(cls, statistics: Mapping[str, Any]) -> LatentScale:
        """The map to mean 0 and deviation 1, from what :class:`LatentStatistics` has measured."""
        return cls(torch.tensor(statistics["mean"]), torch.tensor(statistics["std"]))

    def standardize(self, raw: Tensor) -> Tensor:
        """Raw latents (B, C, *space) -> standardized latents."""
        return (raw - per_channel(self.mean, raw)) / per_channel(self.std, raw)

    def unstandardize(self, z: Tensor) -> Tensor:
        """Standardized latents (B, C, *space) -> raw latents."""
        return z * per_channel(self.std, z) + per_channel(self.mean, z)

    def spacing(self, z: Tensor) -> Tensor | None:
        """None, unless latents are pixels as a file of 8 to 16 bits has them, which is seen by their values."""
        raw = self.unstandardize(z.double())
        for bits in range(8, 17):
            step: Tensor = 2 / (2**bits - 1) / self.std
            place = (raw + 1) * ((2**bits - 1) / 2)
            if bool(((place - place.round()).abs() < _OFF).all()):
                return step
        return None


def per_channel(statistics: Tensor, like: Tensor) -> Tensor:
    """View (C,) so that it broadcasts over ``like`` (B, C, *space)."""
    return statistics.view(1, -1, *[1] * (like.ndim - 2))


class CodeScale(nn.Module):
    """Codes <-> continuous latents, standardized per channel.

    What comes back is put on the nearest code, so that a decoder is always given what it was trained on.

    Args:
        scale: of the codes' channels.
        snap: raw latents (B, C, *space) -> the nearest codes.
        step: (C,) distance of neighbouring values of a raw channel; None for vectors of a book.
    """

    def __init__(self, scale: LatentScale, snap: Callable[[Tensor], Tensor], step: Tensor | None = None) -> None:
        super().__init__()
        self.scale = scale
        self.snap = snap
        self.step = step

    def standardize(self, raw: Tensor) -> Tensor:
        """Codes -> standardized latents."""
        return self.scale.standardize(raw)

    def unstandardize(self, z: Tensor) -> Tensor:
        """Standardized latents -> the nearest codes."""
        return self.snap(self.scale.unstandardize(z))

    def spacing(self, z: Tensor) -> Tensor:
        """Of the codes' channels, standardized."""
        if self.step is None:
            raise UserError(
                "the likelihood of codes from a book (vq, gumbel) has no meaning on this path: they are points, whose "
                "density is unbounded, of no lattice, whose cells would bound it; bits, bsq, fsq and kl have one"
            )
        return self.step.to(self.scale.std.device) / self.scale.std


class _Moments(Protocol):
    """What is measured of a posterior."""

    def moments(self) -> tuple[Tensor, Tensor]: ...


class LatentStatistics(Metric):
    """Moments of posterior draws for each channel, accumulated in float64 over batches and ranks.

    Args:
        channels: number of latent channels C.
    """

    full_state_update = False
    count: Tensor
    first: Tensor
    second: Tensor
    noise: Tensor
    pictures: Tensor

    def __init__(self, channels: int, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.add_state("pictures", torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("count", torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("first", torch.zeros(channels, dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("second", torch.zeros(channels, dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("noise", torch.zeros(channels, dtype=torch.float64), dist_reduce_fx="sum")

    def update(self, posterior: _Moments) -> None:
        """Add the posterior of a batch; the noise of a draw is accounted for exactly, not by drawing."""
        first, second = (moment.double().transpose(0, 1) for moment in posterior.moments())
        self.pictures += first.shape[1]
        first, second = first.flatten(1), second.flatten(1)
        self.count += first.shape[1]
        self.first += first.sum(1)
        self.second += second.sum(1)
        self.noise += (second - first.square()).clamp(min=0).sum(1)

    def compute(self) -> dict[str, Any]:
        """``mean``, ``std`` and ``sigma``, lists of C floats, and ``n``, the number of pictures they were measured on.

        ``std`` is the deviation of draws over pictures and places. ``sigma`` is the part of it that is noise, the root
        mean square of the posterior's own deviation; 0 where latents are certain.
        """
        mean = self.first / self.count
        std = (self.second / self.count - mean.square()).clamp(min=0).sqrt()
        sigma = (self.noise / self.count).sqrt()
        n = int(self.pictures.item())
        return {"mean": mean.tolist(), "std": std.tolist(), "sigma": sigma.tolist(), "n": n}
