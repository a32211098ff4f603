"""The convolutional first stage: an encoder and a decoder of images.

The shape of the KL autoencoder of Rombach et al. (2022): residual blocks at falling resolution, a middle, and the
mirror image of it. A ``stem`` folds pixels into channels before the first level (space to depth), which moves the
most expensive level to a lower resolution: the cheapest way to a given factor.

The two halves are built from the same ``channels`` and ``stem``, given in the encoder's order, fine to coarse.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from torch import Tensor, nn

from ldm_lightning.errors import UserError
from ldm_lightning.nn.attention import SpatialAttention
from ldm_lightning.nn.layers import Downsample, ResBlock, Upsample, group_norm

__all__ = ["ConvDecoder", "ConvEncoder", "check_size", "level"]


class ConvEncoder(nn.Module):
    """Images (B, in_channels, H, W) -> features (B, out_channels, H / factor, W / factor).

    Args:
        in_channels: channels of the image.
        out_channels: channels of the features, for instance twice the latent's for a Gaussian posterior.
        channels: width of each level, fine to coarse; the resolution halves between levels.
        blocks: residual blocks of a level.
        attention: whether the middle attends over its pixels.
        stem: side of the squares of pixels that are folded into channels first.

    Attributes:
        factor: ``stem * 2 ** (len(channels) - 1)``, pixels per latent along a side.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        channels: Sequence[int] = (64, 128, 256),
        blocks: int = 2,
        attention: bool = False,
        stem: int = 1,
    ) -> None:
        super().__init__()
        self.factor = _factor(channels, stem)
        self.net = nn.Sequential(
            nn.PixelUnshuffle(stem),
            nn.Conv2d(in_channels * stem**2, channels[0], 3, padding=1),
            *level(channels[0], blocks),
        )
        for fine, coarse in pairwise(channels):
            self.net.extend([Downsample(fine, coarse), *level(coarse, blocks)])
        self.net.extend([*_middle(channels[-1], attention), *_head(channels[-1], out_channels)])

    def forward(self, x: Tensor) -> Tensor:
        """Encode ``x``.

        Raises:
            UserError: ``factor`` does not divide H and W.
        """
        check_size(x, self.factor)
        out: Tensor = self.net(x)
        return out


class ConvDecoder(nn.Module):
    """Latents (B, in_channels, h, w) -> images (B, out_channels, h * factor, w * factor).

    Args:
        in_channels: channels of the latents.
        out_channels: channels of the image.
        channels: as in the encoder, fine to coarse.
        blocks: residual blocks of a level.
        attention: whether the middle attends over its pixels.
        stem: as in the encoder.

    Attributes:
        factor: ``stem * 2 ** (len(channels) - 1)``, pixels per latent along a side.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        channels: Sequence[int] = (64, 128, 256),
        blocks: int = 2,
        attention: bool = False,
        stem: int = 1,
    ) -> None:
        super().__init__()
        self.factor = _factor(channels, stem)
        self.net = nn.Sequential(
            nn.Conv2d(in_channels, channels[-1], 3, padding=1),
            *_middle(channels[-1], attention),
            *level(channels[-1], blocks),
        )
        for fine, coarse in reversed(list(pairwise(channels))):
            self.net.extend([Upsample(coarse, fine), *level(fine, blocks)])
        self.net.extend([*_head(channels[0], out_channels * stem**2), nn.PixelShuffle(stem)])

    def forward(self, z: Tensor) -> Tensor:
        """Decode ``z``."""
        out: Tensor = self.net(z)
        return out


def check_size(x: Tensor, factor: int) -> None:
    """Check that ``factor`` divides height and width of images (B, C, H, W).

    Raises:
        UserError: it does not; names the nearest sizes that fit.
    """
    size = tuple(x.shape[2:])
    if any(side % factor for side in size):
        lower = "x".join(str(max(1, side // factor) * factor) for side in size)
        upper = "x".join(str(-(-side // factor) * factor) for side in size)
        nearest = upper if lower == upper else f"{lower} or {upper}"
        raise UserError(
            f"images of {size[0]}x{size[1]} are not divisible by the codec's factor {factor}; "
            f"use an image size of {nearest}"
        )


def _factor(channels: Sequence[int], stem: int) -> int:
    """Down-sampling per side.

    Raises:
        UserError: no levels, or a stem below 1.
    """
    if not channels or stem < 1:
        raise UserError(f"channels={list(channels)} and stem={stem}: give at least one level, and a stem of at least 1")
    return int(stem * 2 ** (len(channels) - 1))


def level(width: int, blocks: int) -> list[nn.Module]:
    """Residual blocks of one width and resolution."""
    return [ResBlock(width, width) for _ in range(blocks)]


def _middle(width: int, attention: bool) -> list[nn.Module]:
    between = [SpatialAttention(width, heads=1)] if attention else []
    return [ResBlock(width, width), *between, ResBlock(width, width)]


def _head(width: int, out_channels: int) -> list[nn.Module]:
    return [group_norm(width), nn.SiLU(), nn.Conv2d(width, out_channels, 3, padding=1)]
