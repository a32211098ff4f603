"""The one container that travels from the loader to both stages."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

__all__ = ["Batch"]


@dataclass(frozen=True, eq=False)
class Batch:
    """A batch of samples with their conditions and their identity.

    Attributes:
        x: (B, C, *space) float32 in [-1, 1]; from a latent cache packed posteriors, see `ldm_lightning.data.latents`.
        index: (B,) int64, the global number of each sample in its data set: random numbers are drawn from it.
        condition: tensors by name, first dimension B; ``"class"``: (B,) int64, ``"caption"``: (B, L) int64 bytes.
        epoch: the pass over the data this batch belongs to; 0 for validation.
    """

    x: Tensor
    index: Tensor
    condition: Mapping[str, Tensor] = field(default_factory=dict)
    epoch: int = 0

    def __len__(self) -> int:
        return self.x.shape[0]

    def to(self, device: torch.device | str, *, non_blocking: bool = False) -> Batch:
        """Return this batch with every tensor on ``device`` (Lightning moves batches by this method)."""
        return Batch(
            x=self.x.to(device, non_blocking=non_blocking),
            index=self.index.to(device, non_blocking=non_blocking),
            condition={name: value.to(device, non_blocking=non_blocking) for name, value in self.condition.items()},
            epoch=self.epoch,
        )

    def pin_memory(self) -> Batch:
        """Return this batch in page-locked memory (DataLoader calls this with ``pin_memory=True``)."""
        condition = {name: value.pin_memory() for name, value in self.condition.items()}
        return Batch(self.x.pin_memory(), self.index.pin_memory(), condition, self.epoch)
