"""Exact resumption for whatever draws from torch's global generator, such as dropout inside a network."""

from __future__ import annotations

from typing import Any

import pytorch_lightning as pl
import torch

from ldm_lightning.rng import Streams

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
        number = trainer.fit_loop.epoch_loop.total_batch_idx
        place = Streams(self.seed, torch.tensor([trainer.global_rank]), step=number)
        torch.manual_seed(int(place.uniform("global generator").item() * 2**24))
