"""Stage one: training the autoencoder."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.utilities.types import OptimizerLRSchedulerConfig
from torch import Tensor
from torch.optim import Optimizer
from tqdm import tqdm

from ldm_lightning.data.batch import Batch
from ldm_lightning.latent.autoencoder import Autoencoder
from ldm_lightning.latent.codes import CodeUsage, code_figures, count_codes
from ldm_lightning.latent.reconstruction import ReconstructionLoss, total
from ldm_lightning.latent.scale import LatentStatistics
from ldm_lightning.metrics.reconstruction import reconstruction_metrics
from ldm_lightning.rng import Streams
from ldm_lightning.training.cadence import log_due
from ldm_lightning.training.means import Means
from ldm_lightning.training.optim import LearningRate, MakeOptimizer, configure

__all__ = ["FirstStage"]


class FirstStage(pl.LightningModule):
    """Trains an autoencoder to reconstruct pictures through a compact posterior.

    Args:
        autoencoder: the network in training.
        loss: its terms.
        optimizer: makes the optimizer from the parameters.
        learning_rate: factor on the optimizer's rate, by step.
        seed: of the posterior's noise.
    """

    def __init__(
        self,
        autoencoder: Autoencoder,
        loss: ReconstructionLoss,
        optimizer: MakeOptimizer,
        learning_rate: LearningRate,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.autoencoder = autoencoder
        self.loss = loss
        self.optimizer = optimizer
        self.learning_rate = learning_rate
        self.seed = seed
        self.val_means = Means()
        self.val_metrics = reconstruction_metrics()
        self.val_usage = CodeUsage(autoencoder.bottleneck.groups, autoencoder.bottleneck.codes)

    def configure_optimizers(self) -> OptimizerLRSchedulerConfig:
        """Optimizer and schedule over the whole run."""
        return configure(self, self.autoencoder, self.optimizer, self.learning_rate)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Encode, draw, decode, compare."""
        posterior, streams = self.autoencoder.encode(batch.x), Streams(self.seed, batch.index, batch.epoch)
        z = posterior.sample(streams)
        self.autoencoder.bottleneck.observe(posterior, streams, self.global_step)
        terms = self.loss(batch.x, self.autoencoder.decode(z), posterior)
        loss = total(terms)
        if log_due(self):
            values = {f"train/{name}": term.value for name, term in terms.items()}
            if (numbers := posterior.numbers()) is not None:
                figures = code_figures(count_codes(numbers, self.autoencoder.bottleneck.codes))
                values |= {f"train/batch_{name}": value for name, value in figures.items()}
            self.log_dict(values, sync_dist=True, batch_size=len(batch))
            self.log("train/loss", loss, sync_dist=True, prog_bar=True, batch_size=len(batch))
            self.log("train/lr", self.trainer.optimizers[0].param_groups[0]["lr"])
        return loss

    def on_before_optimizer_step(self, optimizer: Optimizer) -> None:
        """A bottleneck with a state moves on with every optimizer step, whatever number of batches it took."""
        self.autoencoder.bottleneck.advance(self.global_step)

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """The loss and the reconstruction metrics of the posterior's mode."""
        posterior = self.autoencoder.encode(batch.x)
        reconstruction = self.autoencoder.decode(posterior.mode())
        terms = self.loss(batch.x, reconstruction, posterior)
        self.val_metrics.update(reconstruction.clamp(-1, 1), batch.x)
        if (numbers := posterior.numbers()) is not None:
            self.val_usage.update(numbers)
        values = {name: term.value for name, term in terms.items()}
        self.val_means.update(values | {"loss": total(terms)}, len(batch))

    def on_validation_epoch_end(self) -> None:
        """Log loss and metrics over all of the validation set."""
        values = self.val_means.pop() | self.val_metrics.compute()
        if self.autoencoder.bottleneck.codes:
            values |= self.val_usage.compute()
            self.val_usage.reset()
        self.log_dict({f"val/{name}": value for name, value in values.items()})
        self.val_metrics.reset()

    @torch.no_grad()
    def reconstruct(self, x: Tensor) -> Tensor:
        """Pictures (B, C, H, W) in [-1, 1] through the posterior's mode and back, clamped to [-1, 1]."""
        return self.autoencoder.decode(self.autoencoder.encode(x).mode()).clamp(-1, 1)

    @torch.no_grad()
    def artifact(self, pictures: Callable[[], Iterable[Batch]]) -> tuple[str, dict[str, Tensor], dict[str, Any]]:
        """Kind, weights and details that the next stage needs, among them the statistics of the latents.

        Args:
            pictures: gives this rank's share of the batches to measure them on; all ranks must call this.
        """
        statistics = LatentStatistics(self.autoencoder.latent_channels).to(self.device)
        for batch in tqdm(pictures(), desc="measuring latents", unit="batch", disable=not self.trainer.is_global_zero):
            statistics.update(self.autoencoder.encode(batch.x.to(self.device)))
        return "first_stage", self.autoencoder.state_dict(), {"statistics": statistics.compute()}
