"""Exact resumption for whatever draws from torch's global generator, such as dropout inside a network."""

from __future__ import annotations

from hashlib import blake2b
from typing import Any

import pytorch_lightning as pl
import torch

__all__ = ["Reseed"]


class Reseed(pl.Callback):
    """Seeds the global generator before every batch from (seed, batch number, rank), so that it has no past.

    Args:
        seed: the experiment's seed.
    """

    def __init__(self, seed: int) -> None:
        self.seed = seed

    def on_train_batch_start(self, trainer: pl.Trainer, *args: Any) -> None:
        """Seed."""
        place = (self.seed, trainer.fit_loop.epoch_loop.total_batch_idx, trainer.global_rank)
        torch.manual_seed(int.from_bytes(blake2b(repr(place).encode(), digest_size=7).digest(), "big"))
