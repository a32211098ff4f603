"""What networks need to know of the number of axes: sound and text have one, pictures two, volumes and video three.

A network is told by ``space`` how many axes its items (B, C, *axes) have. Nothing else in it depends on the number but
the convolutions made here, and folding, which turns blocks of neighbouring positions into channels.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from ldm_lightning.errors import UserError

__all__ = ["Fold", "Unfold", "check_axes", "convolution", "fold", "shape_text", "unfold"]

_CONVOLUTIONS: dict[int, type[nn.Conv1d] | type[nn.Conv2d] | type[nn.Conv3d]] = {
    1: nn.Conv1d,
    2: nn.Conv2d,
    3: nn.Conv3d,
}


def convolution(
    space: int, in_channels: int, out_channels: int, kernel: int, **arguments: Any
) -> nn.Conv1d | nn.Conv2d | nn.Conv3d:
    """A convolution over ``space`` axes, with the same kernel along each.

    Raises:
        UserError: ``space`` is none of 1, 2 and 3.
    """
    if space not in _CONVOLUTIONS:
        raise UserError(f"space={space} is no number of axes that networks have: set it to 1, 2 or 3")
    return _CONVOLUTIONS[space](in_channels, out_channels, kernel, **arguments)


def check_axes(x: Tensor, space: int) -> None:
    """Check that ``x`` (B, C, *axes) has ``space`` axes.

    Raises:
        UserError: it does not.
    """
    if x.ndim != space + 2:
        raise UserError(
            f"the network is for items with space={space} axes, but was given a batch of shape {tuple(x.shape)}, which "
            f"has {x.ndim - 2}: set its space={x.ndim - 2}, or choose data of {space} axes"
        )


def shape_text(sides: Sequence[int]) -> str:
    """Sides as people write them: ``32x48``."""
    return "x".join(map(str, sides))


def fold(x: Tensor, factor: int | Sequence[int]) -> Tensor:
    """Space to depth: (B, C, *axes) -> (B, C * product of the factors, *axes / factors).

    Args:
        x: sides that are multiples of their factors.
        factor: of all axes, or of each.
    """
    factors = _each(factor, x.ndim - 2)
    for axis, by in enumerate(factors):
        x = x.unflatten(2 + 2 * axis, (-1, by))
    outer, inner = range(2, x.ndim, 2), range(3, x.ndim, 2)
    return x.permute(0, 1, *inner, *outer).flatten(1, 1 + len(factors))


def unfold(x: Tensor, factor: int | Sequence[int]) -> Tensor:
    """Depth to space: undoes :func:`fold`."""
    factors = _each(factor, x.ndim - 2)
    count = len(factors)
    x = x.unflatten(1, (-1, *factors))
    pairs = [axis for number in range(count) for axis in (2 + count + number, 2 + number)]
    x = x.permute(0, 1, *pairs)
    for axis in range(count):
        x = x.flatten(2 + axis, 3 + axis)
    return x


def _each(factor: int | Sequence[int], axes: int) -> tuple[int, ...]:
    return (factor,) * axes if isinstance(factor, int) else tuple(factor)


class Fold(nn.Module):
    """:func:`fold` as a layer."""

    def __init__(self, factor: int) -> None:
        super().__init__()
        self.factor = factor

    def forward(self, x: Tensor) -> Tensor:
        """Fold ``x``."""
        return fold(x, self.factor)


class Unfold(nn.Module):
    """:func:`unfold` as a layer."""

    def __init__(self, factor: int) -> None:
        super().__init__()
        self.factor = factor

    def forward(self, x: Tensor) -> Tensor:
        """Unfold ``x``."""
        return unfold(x, self.factor)
