"""A codec of deep compression: factors of 16, 32 and beyond (Chen et al. 2024, "DC-AE").

At large factors a convolutional codec reconstructs worse than at small ones, even with as many numbers in the latent:
the changes of resolution are hard to optimize. Here each is *residual* to a shortcut without parameters:

* down: fold 2x2 pixels into channels (space to channel), and average groups of channels to the wanted width;
* up: duplicate channels, and unfold them into 2x2 pixels (channel to space).

So are the first and last convolutions at the latent. What the networks add starts at zero, so that an untrained encoder
and decoder are this rearrangement of pixels itself, around the outermost convolutions.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from torch import Tensor, nn
from torch.nn import functional as F

from ldm_lightning.errors import UserError
from ldm_lightning.nn.conv_codec import check_size, level
from ldm_lightning.nn.layers import group_norm, zeroed

__all__ = ["DeepDecoder", "DeepEncoder", "channel_to_space", "space_to_channel"]


def space_to_channel(x: Tensor, out_channels: int, factor: int = 2) -> Tensor:
    """(B, C, H, W) -> (B, out_channels, H / factor, W / factor): folded, then means over neighbouring channels.

    ``out_channels`` divides ``factor**2 C``.
    """
    folded = F.pixel_unshuffle(x, factor)
    averaged: Tensor = folded.unflatten(1, (out_channels, -1)).mean(2)
    return averaged


def channel_to_space(x: Tensor, out_channels: int, factor: int = 2) -> Tensor:
    """(B, C, h, w) -> (B, out_channels, h factor, w factor): channels repeated, then unfolded.

    C divides ``factor**2 out_channels``. Undoes :func:`space_to_channel` where that averages nothing.
    """
    repeated = x.repeat_interleave(factor**2 * out_channels // x.shape[1], dim=1)
    return F.pixel_shuffle(repeated, factor)


class _Down(nn.Module):
    """Residual change of width, and of resolution by ``factor`` (1 or 2) downwards."""

    def __init__(self, in_channels: int, out_channels: int, factor: int) -> None:
        super().__init__()
        if factor**2 * in_channels % out_channels or out_channels % factor**2:
            raise _misfit(in_channels, out_channels)
        self.out_channels, self.factor = out_channels, factor
        self.conv = zeroed(nn.Conv2d(in_channels, out_channels // factor**2, 3, padding=1))

    def forward(self, x: Tensor) -> Tensor:
        change = F.pixel_unshuffle(self.conv(x), self.factor)
        return space_to_channel(x, self.out_channels, self.factor) + change


class _Up(nn.Module):
    """Residual change of width, and of resolution by ``factor`` (1 or 2) upwards."""

    def __init__(self, in_channels: int, out_channels: int, factor: int) -> None:
        super().__init__()
        if factor**2 * out_channels % in_channels:
            raise _misfit(out_channels, in_channels)
        self.out_channels, self.factor = out_channels, factor
        self.conv = zeroed(nn.Conv2d(in_channels, factor**2 * out_channels, 3, padding=1))

    def forward(self, x: Tensor) -> Tensor:
        change = F.pixel_shuffle(self.conv(x), self.factor)
        return channel_to_space(x, self.out_channels, self.factor) + change


def _misfit(fine: int, coarse: int) -> UserError:
    return UserError(
        f"the deep codec averages channels in equal groups, which {fine} to {coarse} channels do not allow: choose "
        "multiples of 4 that at most quadruple from level to level, each time without remainder, also at the latent"
    )


class DeepEncoder(nn.Module):
    """Images (B, in_channels, H, W) -> features (B, out_channels, H / factor, W / factor).

    Args:
        in_channels: channels of the image.
        out_channels: channels of the features; divides the last width.
        channels: width of each level, fine to coarse; the resolution halves between levels.
        blocks: residual blocks of each level.

    Attributes:
        factor: ``2 ** (len(channels) - 1)``, pixels per latent along a side.

    Raises:
        UserError: widths that cannot be averaged, or another number of ``blocks`` than of levels.
    """

    def __init__(self, in_channels: int, out_channels: int, *, channels: Sequence[int], blocks: Sequence[int]) -> None:
        super().__init__()
        self.factor = _factor(channels, blocks)
        self.net = nn.Sequential(nn.Conv2d(in_channels, channels[0], 3, padding=1), *level(channels[0], blocks[0]))
        for (fine, coarse), count in zip(pairwise(channels), blocks[1:], strict=True):
            self.net.extend([_Down(fine, coarse, 2), *level(coarse, count)])
        self.net.append(_Down(channels[-1], out_channels, 1))

    def forward(self, x: Tensor) -> Tensor:
        """Encode ``x``.

        Raises:
            UserError: ``factor`` does not divide H and W.
        """
        check_size(x, self.factor)
        out: Tensor = self.net(x)
        return out


class DeepDecoder(nn.Module):
    """Latents (B, in_channels, h, w) -> images (B, out_channels, h * factor, w * factor).

    Args:
        in_channels: channels of the latents; divides the last width.
        out_channels: channels of the image.
        channels: as in the encoder, fine to coarse.
        blocks: as in the encoder.

    Attributes:
        factor: ``2 ** (len(channels) - 1)``, pixels per latent along a side.

    Raises:
        UserError: widths that cannot be averaged, or another number of ``blocks`` than of levels.
    """

    def __init__(self, in_channels: int, out_channels: int, *, channels: Sequence[int], blocks: Sequence[int]) -> None:
        super().__init__()
        self.factor = _factor(channels, blocks)
        self.net = nn.Sequential(_Up(in_channels, channels[-1], 1), *level(channels[-1], blocks[-1]))
        for (fine, coarse), count in reversed(list(zip(pairwise(channels), blocks[:-1], strict=True))):
            self.net.extend([_Up(coarse, fine, 2), *level(fine, count)])
        self.net.extend([group_norm(channels[0]), nn.SiLU(), nn.Conv2d(channels[0], out_channels, 3, padding=1)])

    def forward(self, z: Tensor) -> Tensor:
        """Decode ``z``."""
        out: Tensor = self.net(z)
        return out


def _factor(channels: Sequence[int], blocks: Sequence[int]) -> int:
    if not channels or len(channels) != len(blocks):
        raise UserError(f"channels={list(channels)} and blocks={list(blocks)}: give one entry a level to both")
    return int(2 ** (len(channels) - 1))
