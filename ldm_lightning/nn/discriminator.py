"""The patch discriminator: one verdict for every overlapping patch of an item.

PatchGAN (Isola et al. 2017) in the size used for autoencoders (Esser et al. 2021): convolutions of 4 x 4 pixels
(of 4 positions along each axis),
``layers`` of them at stride 2, two more at stride 1. Three layers judge patches of 70 x 70 pixels. Batch
normalization is replaced by group normalization, whose answer to a picture does not depend on its batch, and so
neither on the number of processes. But it looks at the whole picture; without it a verdict is about a patch alone, and
penalties of the gradient do what normalization is for.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Literal

from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm

from ldm_lightning.errors import UserError
from ldm_lightning.nn.layers import group_norm
from ldm_lightning.nn.space import check_axes, convolution, shape_text

__all__ = ["PatchDiscriminator"]


class PatchDiscriminator(nn.Module):
    """Items (B, in_channels, *axes) -> logits (B, 1, *fewer), positive where a patch looks real, and hidden features.

    Args:
        in_channels: channels of the items, any number.
        width: channels of the first layer; they double from layer to layer, up to eight times.
        layers: convolutions at stride 2; items must have sides of at least 3 * 2^layers, 24 for three.
        norm: ``group`` normalizes features; ``spectral`` bounds every layer's Lipschitz constant instead (Miyato et al.
            2018); ``none`` does neither, for games with ``r1`` and ``r2``, and starts from He's initialization.
        space: number of axes: 1, 2 or 3.

    Raises:
        UserError: a size below 1, or another ``norm``.
    """

    def __init__(
        self,
        in_channels: int,
        width: int = 64,
        layers: int = 3,
        norm: Literal["group", "spectral", "none"] = "group",
        *,
        space: int = 2,
    ) -> None:
        super().__init__()
        if layers < 1 or width < 1:
            raise UserError(
                f"first_stage.adversary.discriminator: layers={layers} and width={width} must be at least 1"
            )
        if norm not in ("group", "spectral", "none"):
            raise UserError(f"first_stage.adversary.discriminator.norm={norm}: set it to group, spectral or none")
        widths = [in_channels, *(width * min(2**layer, 8) for layer in range(layers + 1))]
        self.net = nn.Sequential()
        for layer, (before, after) in enumerate(pairwise(widths)):
            # As in the original, the first layer's features and the verdict are not normalized.
            normed = [group_norm(after)] if norm == "group" and layer > 0 else []
            stride = 2 if layer < layers else 1
            self.net.extend(
                [convolution(space, before, after, 4, stride=stride, padding=1), *normed, nn.LeakyReLU(0.2)]
            )
        self.net.append(convolution(space, widths[-1], 1, 4, padding=1))
        for module in self.net:
            if isinstance(module, nn.Conv1d | nn.Conv2d | nn.Conv3d):
                if norm == "none":
                    nn.init.kaiming_normal_(module.weight, 0.2)
                else:
                    nn.init.normal_(module.weight, 0.0, 0.02)
                if norm == "spectral":
                    spectral_norm(module)
        self.layers, self.space = layers, space

    def forward(self, x: Tensor) -> tuple[Tensor, list[Tensor]]:
        """The verdicts on the items ``x``, and the features (B, C_l, *axes_l) of every hidden layer.

        Raises:
            UserError: another number of axes than ``space``, or too small for so many layers.
        """
        check_axes(x, self.space)
        if min(x.shape[2:]) < _smallest(self.layers):
            fitting = [layers for layers in range(1, self.layers) if min(x.shape[2:]) >= _smallest(layers)]
            mend = f"set first_stage.adversary.discriminator.layers={fitting[-1]}" if fitting else "use larger ones"
            raise UserError(
                f"items of {shape_text(x.shape[2:])} are too small for a discriminator with layers={self.layers} "
                f"(at least {_smallest(self.layers)}): {mend}"
            )
        features = []
        for module in self.net:
            x = module(x)
            if isinstance(module, nn.LeakyReLU):
                features.append(x)
        return x, features


def _smallest(layers: int) -> int:
    """Side of the smallest item that leaves one verdict: two layers at stride 1 take a position each."""
    return int(3 * 2**layers)
