"""A codec that does nothing: latents that are pictures."""

from __future__ import annotations

from torch import Tensor, nn

from ldm_lightning.errors import UserError

__all__ = ["IdentityCodec"]


class IdentityCodec(nn.Module):
    """Either half.

    Args:
        in_channels: channels of what comes in.
        out_channels: must be the same.

    Raises:
        UserError: it is not.
    """

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        if in_channels != out_channels:
            raise UserError(f"an identity codec cannot make {out_channels} channels of {in_channels}")
        self.factor = 1

    def forward(self, x: Tensor) -> Tensor:
        """Answer ``x``."""
        return x
