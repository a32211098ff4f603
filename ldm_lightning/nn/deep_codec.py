"""A codec of deep compression: factors of 16, 32 and beyond (Chen et al. 2024, "DC-AE").

At large factors a convolutional codec reconstructs worse than at small ones, even with as many numbers in the latent:
the changes of resolution are hard to optimize. Here each is *residual* to a shortcut without parameters:

* down: fold blocks of positions (2x2 pixels) into channels (space to channel), and average groups of channels to the
  wanted width;
* up: duplicate channels, and unfold them into such blocks (channel to space).

So are the first and last convolutions at the latent. What the networks add starts at zero, so that an untrained encoder
and decoder are this rearrangement of pixels itself, around the outermost convolutions.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from torch import Tensor, nn

from ldm_lightning.errors import UserError
from ldm_lightning.nn.conv_codec import check_size, head, level
from ldm_lightning.nn.layers import zeroed
from ldm_lightning.nn.space import check_axes, convolution, fold, unfold

__all__ = ["DeepDecoder", "DeepEncoder", "channel_to_space", "space_to_channel"]


def space_to_channel(x: Tensor, out_channels: int, factor: int = 2) -> Tensor:
    """(B, C, *axes) -> (B, out_channels, *axes / factor): folded, then means over neighbouring channels.

    ``out_channels`` divides ``factor**n C``, with n axes.
    """
    averaged: Tensor = fold(x, factor).unflatten(1, (out_channels, -1)).mean(2)
    return averaged


def channel_to_space(x: Tensor, out_channels: int, factor: int = 2) -> Tensor:
    """(B, C, *axes) -> (B, out_channels, *axes factor): channels repeated, then unfolded.

    C divides ``factor**n out_channels``, with n axes. Undoes :func:`space_to_channel` where that averages nothing.
    """
    repeated = x.repeat_interleave(factor ** (x.ndim - 2) * out_channels // x.shape[1], dim=1)
    return unfold(repeated, factor)


class _Down(nn.Module):
    """Residual change of width, and of resolution by ``factor`` (1 or 2) downwards."""

    def __init__(self, in_channels: int, out_channels: int, factor: int, space: int) -> None:
        super().__init__()
        block = factor**space
        if block * in_channels % out_channels or out_channels % block:
            raise _misfit(in_channels, out_channels, space)
        self.out_channels, self.factor = out_channels, factor
        self.conv = zeroed(convolution(space, in_channels, out_channels // block, 3, padding=1))

    def forward(self, x: Tensor) -> Tensor:
        change = fold(self.conv(x), self.factor)
        return space_to_channel(x, self.out_channels, self.factor) + change


class _Up(nn.Module):
    """Residual change of width, and of resolution by ``factor`` (1 or 2) upwards."""

    def __init__(self, in_channels: int, out_channels: int, factor: int, space: int) -> None:
        super().__init__()
        block = factor**space
        if block * out_channels % in_channels:
            raise _misfit(out_channels, in_channels, space)
        self.out_channels, self.factor = out_channels, factor
        self.conv = zeroed(convolution(space, in_channels, block * out_channels, 3, padding=1))

    def forward(self, x: Tensor) -> Tensor:
        change = unfold(self.conv(x), self.factor)
        return channel_to_space(x, self.out_channels, self.factor) + change


def _misfit(fine: int, coarse: int, space: int) -> UserError:
    block = 2**space
    return UserError(
        f"the deep codec averages channels in equal groups, which {fine} to {coarse} channels do not allow: choose "
        f"multiples of {block} that grow at most {block} times from level to level, each time without remainder, also "
        "at the latent"
    )


class DeepEncoder(nn.Module):
    """Items (B, in_channels, *axes) -> features (B, out_channels, *axes / factor).

    Args:
        in_channels: channels of an item.
        out_channels: channels of the features; divides the last width.
        channels: width of each level, fine to coarse; the resolution halves between levels.
        blocks: residual blocks of each level.
        space: number of axes: 1, 2 or 3.

    Attributes:
        factor: ``2 ** (len(channels) - 1)``, positions per latent along an axis.

    Raises:
        UserError: widths that cannot be averaged, or another number of ``blocks`` than of levels.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        channels: Sequence[int],
        blocks: Sequence[int],
        space: int = 2,
    ) -> None:
        super().__init__()
        self.factor, self.space = _factor(channels, blocks), space
        first = convolution(space, in_channels, channels[0], 3, padding=1)
        self.net = nn.Sequential(first, *level(channels[0], blocks[0], space))
        for (fine, coarse), count in zip(pairwise(channels), blocks[1:], strict=True):
            self.net.extend([_Down(fine, coarse, 2, space), *level(coarse, count, space)])
        self.net.append(_Down(channels[-1], out_channels, 1, space))

    def forward(self, x: Tensor) -> Tensor:
        """Encode ``x``.

        Raises:
            UserError: another number of axes than ``space``, or a side that ``factor`` does not divide.
        """
        check_axes(x, self.space)
        check_size(x, self.factor)
        out: Tensor = self.net(x)
        return out


class DeepDecoder(nn.Module):
    """Latents (B, in_channels, *axes) -> items (B, out_channels, *axes * factor).

    Args:
        in_channels: channels of the latents; divides the last width.
        out_channels: channels of an item.
        channels: as in the encoder, fine to coarse.
        blocks: as in the encoder.
        space: as in the encoder.

    Attributes:
        factor: ``2 ** (len(channels) - 1)``, positions per latent along an axis.

    Raises:
        UserError: widths that cannot be averaged, or another number of ``blocks`` than of levels.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        channels: Sequence[int],
        blocks: Sequence[int],
        space: int = 2,
    ) -> None:
        super().__init__()
        self.factor, self.space = _factor(channels, blocks), space
        self.net = nn.Sequential(_Up(in_channels, channels[-1], 1, space), *level(channels[-1], blocks[-1], space))
        for (fine, coarse), count in reversed(list(zip(pairwise(channels), blocks[:-1], strict=True))):
            self.net.extend([_Up(coarse, fine, 2, space), *level(fine, count, space)])
        self.net.extend(head(channels[0], out_channels, space))

    def forward(self, z: Tensor) -> Tensor:
        """Decode ``z``.

        Raises:
            UserError: another number of axes than ``space``.
        """
        check_axes(z, self.space)
        out: Tensor = self.net(z)
        return out


def _factor(channels: Sequence[int], blocks: Sequence[int]) -> int:
    if not channels or len(channels) != len(blocks):
        raise UserError(f"channels={list(channels)} and blocks={list(blocks)}: give one entry a level to both")
    return int(2 ** (len(channels) - 1))
