"""The convolutional first stage: an encoder and a decoder of items with one, two or three axes.

The shape of the KL autoencoder of Rombach et al. (2022): residual blocks at falling resolution, a middle, and the
mirror image of it. A ``stem`` folds positions into channels before the first level (space to depth), which moves the
most expensive level to a lower resolution: the cheapest way to a given factor.

The two halves are built from the same ``channels`` and ``stem``, given in the encoder's order, fine to coarse.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from torch import Tensor, nn

from ldm_lightning.errors import UserError
from ldm_lightning.nn.attention import SpatialAttention
from ldm_lightning.nn.layers import ResBlock, Upsample, downsample, group_norm
from ldm_lightning.nn.space import Fold, Unfold, check_axes, convolution, shape_text

__all__ = ["ConvDecoder", "ConvEncoder", "check_size", "head", "level"]


class ConvEncoder(nn.Module):
    """Items (B, in_channels, *axes) -> features (B, out_channels, *axes / factor).

    Args:
        in_channels: channels of an item.
        out_channels: channels of the features, for instance twice the latent's for a Gaussian posterior.
        channels: width of each level, fine to coarse; the resolution halves between levels.
        blocks: residual blocks of a level.
        attention: whether the middle attends over all its positions.
        stem: side of the blocks of positions (squares of pixels) that are folded into channels first.
        space: number of axes: 1, 2 or 3.

    Attributes:
        factor: ``stem * 2 ** (len(channels) - 1)``, positions per latent along an axis.
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
        space: int = 2,
    ) -> None:
        super().__init__()
        self.factor, self.space = _factor(channels, stem), space
        self.net = nn.Sequential(
            Fold(stem),
            convolution(space, in_channels * stem**space, channels[0], 3, padding=1),
            *level(channels[0], blocks, space),
        )
        for fine, coarse in pairwise(channels):
            self.net.extend([downsample(fine, coarse, space=space), *level(coarse, blocks, space)])
        self.net.extend([*_middle(channels[-1], attention, space), *head(channels[-1], out_channels, space)])

    def forward(self, x: Tensor) -> Tensor:
        """Encode ``x``.

        Raises:
            UserError: another number of axes than ``space``, or a side that ``factor`` does not divide.
        """
        check_axes(x, self.space)
        check_size(x, self.factor)
        out: Tensor = self.net(x)
        return out


class ConvDecoder(nn.Module):
    """Latents (B, in_channels, *axes) -> items (B, out_channels, *axes * factor).

    Args:
        in_channels: channels of the latents.
        out_channels: channels of an item.
        channels: as in the encoder, fine to coarse.
        blocks: residual blocks of a level.
        attention: whether the middle attends over all its positions.
        stem: as in the encoder.
        space: as in the encoder.

    Attributes:
        factor: ``stem * 2 ** (len(channels) - 1)``, positions per latent along an axis.
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
        space: int = 2,
    ) -> None:
        super().__init__()
        self.factor, self.space = _factor(channels, stem), space
        self.net = nn.Sequential(
            convolution(space, in_channels, channels[-1], 3, padding=1),
            *_middle(channels[-1], attention, space),
            *level(channels[-1], blocks, space),
        )
        for fine, coarse in reversed(list(pairwise(channels))):
            self.net.extend([Upsample(coarse, fine, space=space), *level(fine, blocks, space)])
        self.net.extend([*head(channels[0], out_channels * stem**space, space), Unfold(stem)])

    def forward(self, z: Tensor) -> Tensor:
        """Decode ``z``.

        Raises:
            UserError: another number of axes than ``space``.
        """
        check_axes(z, self.space)
        out: Tensor = self.net(z)
        return out


def check_size(x: Tensor, factor: int) -> None:
    """Check that ``factor`` divides every side of items (B, C, *axes).

    Raises:
        UserError: it does not; names the nearest sizes that fit.
    """
    size = tuple(x.shape[2:])
    if any(side % factor for side in size):
        lower = shape_text([max(1, side // factor) * factor for side in size])
        upper = shape_text([-(-side // factor) * factor for side in size])
        nearest = upper if lower == upper else f"{lower} or {upper}"
        raise UserError(
            f"items of {shape_text(size)} are not divisible by the codec's factor {factor}; use a size of {nearest}"
        )


def _factor(channels: Sequence[int], stem: int) -> int:
    """Down-sampling per axis.

    Raises:
        UserError: no levels, or a stem below 1.
    """
    if not channels or stem < 1:
        raise UserError(f"channels={list(channels)} and stem={stem}: give at least one level, and a stem of at least 1")
    return int(stem * 2 ** (len(channels) - 1))


def level(width: int, blocks: int, space: int) -> list[nn.Module]:
    """Residual blocks of one width and resolution."""
    return [ResBlock(width, width, space=space) for _ in range(blocks)]


def head(width: int, out_channels: int, space: int) -> list[nn.Module]:
    """The way out of residual blocks: norm, SiLU, convolution."""
    return [group_norm(width), nn.SiLU(), convolution(space, width, out_channels, 3, padding=1)]


def _middle(width: int, attention: bool, space: int) -> list[nn.Module]:
    between = [SpatialAttention(width, heads=1)] if attention else []
    return [*level(width, 1, space), *between, *level(width, 1, space)]
