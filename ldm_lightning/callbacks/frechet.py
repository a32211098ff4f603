"""Fréchet distance between samples and validation pictures, during training."""

from __future__ import annotations

import pytorch_lightning as pl
import torch

from ldm_lightning.evaluation.comparison import Comparison
from ldm_lightning.metrics.extractor import Extractor

__all__ = ["FrechetDuringTraining"]


class FrechetDuringTraining(pl.Callback):
    """Logs ``val/fd_<extractor>@<N>`` after every so many validations; all ranks share the work.

    Of fewer than 100 pictures the name ends with ``_too_few``.

    For each of N validation pictures one sample is drawn with the same condition, so both sides have the same number of
    pictures and the same mixture of conditions.

    Args:
        extractor: turns pictures into features.
        n: number of validation pictures at most, and of samples.
        every_n_validations: how often.
        seed: of the samples.
    """

    def __init__(self, extractor: Extractor, n: int = 1000, every_n_validations: int = 1, seed: int = 1) -> None:
        self.comparison = Comparison([extractor], keep_reference=True)
        self.n, self.seed = n, seed
        self.every_n_validations = every_n_validations
        self.validations = 0

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Take one picture: beside cached latents they may be out of reach, and hours later is no time to say so."""
        trainer.datamodule.pictures("validation", 1)  # type: ignore[attr-defined]

    def on_validation_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Draw this rank's share of the samples and log the distance."""
        if trainer.sanity_checking:
            return
        self.validations += 1
        if self.validations % self.every_n_validations:
            return
        comparison = self.comparison.to(pl_module.device)
        new = not comparison.has_reference
        for batch in trainer.datamodule.loader("validation", limit=self.n):  # type: ignore[attr-defined]
            real = batch.to(pl_module.device)
            if new:
                comparison.update(real.x, real=True)
            samples = pl_module.sample(real.index, real.condition, self.seed)  # type: ignore[operator]
            comparison.update(samples, real=False)
        figures = comparison.compute()  # on all ranks together
        for label, value in figures.items():
            pl_module.log(f"val/{label}", torch.tensor(value, dtype=torch.float64, device=pl_module.device))
        comparison.reset()

    def state_dict(self) -> dict[str, int]:
        """How many validations there have been."""
        return {"validations": self.validations}

    def load_state_dict(self, state_dict: dict[str, int]) -> None:
        """Go on counting."""
        self.validations = state_dict["validations"]
