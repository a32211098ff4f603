"""A backbone and its conditioner, as one module: the network that a denoiser wraps."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn

from ldm_lightning.errors import UserError
from ldm_lightning.nn.conditioner import Conditioner

__all__ = ["ConditionalNetwork"]


class ConditionalNetwork(nn.Module):
    """``backbone(z, t, conditioner(condition, drop))``.

    Args:
        backbone: a module with attributes ``vector_width`` and ``token_width`` and
            ``forward(z, t, context: Context)``, such as ``UNet`` or ``DiT``.
        conditioner: turns the batch's conditions into a context of the same widths.

    Raises:
        UserError: the two disagree about a width, so that a condition would be missing or silently ignored.
    """

    def __init__(self, backbone: nn.Module, conditioner: Conditioner) -> None:
        super().__init__()
        for name in ("vector_width", "token_width"):
            expected, given = getattr(backbone, name), getattr(conditioner, name)
            if expected != given:
                raise UserError(
                    f"the backbone has {name}={expected} but the conditioner gives {given}; "
                    f"set the backbone's {name} to {given}"
                )
        self.backbone, self.conditioner = backbone, conditioner

    def forward(self, z: Tensor, t: Tensor, condition: Mapping[str, Tensor], drop: Tensor | None = None) -> Tensor:
        """Evaluate the network.

        Args:
            z: (B, C, H, W) noisy latents.
            t: (B,) times in [0, 1].
            condition: tensors by name, first dimension B.
            drop: (B,) bool, True where the condition is replaced by the learned null; None for nowhere.

        Returns:
            (B, out_channels, H, W).
        """
        out: Tensor = self.backbone(z, t, self.conditioner(condition, drop))
        return out
