"""A network that sees an estimate of its own answer beside its input (Chen et al. 2022, "Analog bits", section 3.2)."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

__all__ = ["SelfConditioned"]


class SelfConditioned(nn.Module):
    """``network`` on twice the channels: those of z, then those of ``condition["estimate"]``, or zeros without one.

    Args:
        network: takes (B, 2 C, *space) and answers (B, C, *space), such as a ``ConditionalNetwork``.
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, z: Tensor, t: Tensor, condition: Mapping[str, Tensor], drop: Tensor | None = None) -> Tensor:
        """Evaluate the network.

        Args:
            z: (B, C, *space) noisy latents.
            t: (B,) times in [0, 1].
            condition: tensors by name, first dimension B; "estimate" (B, C, *space) of the clean latents.
            drop: (B,) bool, True where the condition is replaced by the learned null; the estimate stays.

        Returns:
            (B, C, *space).
        """
        estimate = condition.get("estimate")
        both = torch.cat([z, torch.zeros_like(z) if estimate is None else estimate.to(z.dtype)], dim=1)
        out: Tensor = self.network(both, t, condition, drop)
        return out
