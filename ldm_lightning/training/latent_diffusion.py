"""Stage two: training the denoiser in the latent space of a frozen first stage."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.utilities.types import OptimizerLRSchedulerConfig
from torch import Tensor
from torch.optim import Optimizer

from ldm_lightning.data.batch import Batch
from ldm_lightning.diffusion.denoiser import Denoiser
from ldm_lightning.diffusion.guidance import Guidance
from ldm_lightning.diffusion.objective import Objective, Term, total
from ldm_lightning.diffusion.sampler import Sampler
from ldm_lightning.diffusion.self_conditioning import Remembering, check_evaluated_once
from ldm_lightning.latent.frozen import FrozenFirstStage
from ldm_lightning.latent.posterior import PointPosterior
from ldm_lightning.latent.scale import LatentStatistics
from ldm_lightning.rng import Streams
from ldm_lightning.training.cadence import log_due
from ldm_lightning.training.means import Means
from ldm_lightning.training.optim import LearningRate, MakeOptimizer, configure

__all__ = ["LatentDiffusion"]


class LatentDiffusion(pl.LightningModule):
    """Trains a denoiser on standardized latents, and samples from it.

    Args:
        denoiser: the network in training with its path and prediction.
        objective: time law, weighting, terms of the loss, condition dropout, self-conditioning.
        first_stage: the frozen autoencoder.
        latent_shape: (C, h, w) of one latent.
        sampler: used by :meth:`sample` unless another is given.
        guidance: used by :meth:`sample` unless another is given.
        optimizer: makes the optimizer from the parameters.
        learning_rate: factor on the optimizer's rate, by step.
        seed: of times, noise and condition dropout in training.
    """

    def __init__(
        self,
        *,
        denoiser: Denoiser,
        objective: Objective,
        first_stage: FrozenFirstStage,
        latent_shape: tuple[int, ...],
        sampler: Sampler,
        guidance: Guidance,
        optimizer: MakeOptimizer,
        learning_rate: LearningRate,
        seed: int = 0,
    ) -> None:
        super().__init__()
        if objective.self_conditioning:
            check_evaluated_once(sampler)
        self.denoiser = denoiser
        self.objective = objective
        self.first_stage = first_stage
        self.latent_shape = latent_shape
        self.sampler = sampler
        self.guidance = guidance
        self.optimizer = optimizer
        self.learning_rate = learning_rate
        self.seed = seed
        self.val_means = Means()
        self.val_latents = LatentStatistics(latent_shape[0])

    def configure_optimizers(self) -> OptimizerLRSchedulerConfig:
        """Optimizer and schedule over the whole run."""
        groups = [{"params": list(self.denoiser.parameters())}]
        return configure(self, groups, self.optimizer, self.learning_rate)

    def on_fit_start(self) -> None:
        """The frozen stage is no submodule, so Lightning does not move it."""
        self.first_stage.to(self.device)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Encode, corrupt, denoise, compare; see :meth:`Objective.loss`."""
        streams = Streams(self.seed, batch.index, batch.epoch)
        z0 = self.first_stage.encode(batch.x, streams)
        means = _means(self.objective.losses(self.denoiser, z0, batch.condition, streams))
        if log_due(self):
            values = {f"train/{name}": value for name, value in means.items()}
            self.log_dict(values, sync_dist=True, prog_bar=True, batch_size=len(batch))
            self.log("train/lr", self.trainer.optimizers[0].param_groups[0]["lr"])
        return means["loss"]

    def on_before_optimizer_step(self, optimizer: Optimizer) -> None:
        """The objective moves on with every optimizer step, whatever number of batches it took."""
        self.objective.advance()

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """The training loss of unseen samples, with the same times and noise at every validation, and their moments."""
        streams = Streams(self.seed, batch.index)
        z0 = self.first_stage.encode(batch.x, streams)
        means = _means(self.objective.losses(self.denoiser, z0, batch.condition, streams))
        self.val_means.update({f"val/{name}": value for name, value in means.items()}, len(batch))
        self.val_latents.update(PointPosterior(z0, z0))

    def on_validation_epoch_end(self) -> None:
        """Log the loss and its terms over all of the validation set, and how far its latents are standardized."""
        self.log_dict(self.val_means.pop(), prog_bar=True)
        moments, n = self.val_latents.compute(), self.val_means.samples
        self.val_latents.reset()
        figures = {f"{name}/{c}": value for name in ("mean", "std") for c, value in enumerate(moments[name])}
        self.log_dict({f"val/latent/{name}@{n}": value for name, value in figures.items()})

    @torch.no_grad()
    def sample(
        self,
        index: Tensor,
        condition: Mapping[str, Tensor],
        seed: int,
        sampler: Sampler | None = None,
        guidance: Guidance | None = None,
    ) -> Tensor:
        """Draw pictures (B, C, H, W) in [-1, 1]: what :meth:`sample_latents` draws, decoded."""
        return self.first_stage.decode(self.sample_latents(index, condition, seed, sampler, guidance))

    @torch.no_grad()
    def sample_latents(
        self,
        index: Tensor,
        condition: Mapping[str, Tensor],
        seed: int,
        sampler: Sampler | None = None,
        guidance: Guidance | None = None,
    ) -> Tensor:
        """Draw standardized latents (B, c, *space).

        Args:
            index: (B,) int64 sample numbers; a sample is a function of its number, its condition and the seed alone.
            condition: tensors by name, first dimension B.
            seed: of the initial noise and the sampler's own.
            sampler: instead of the run's.
            guidance: instead of the run's.

        Raises:
            UserError: the sampler cannot draw from a self-conditioned model.
        """
        path, streams, sampler = self.denoiser.path, Streams(seed, index), sampler or self.sampler
        z = path.prior(streams, self.latent_shape)
        z = z.to(next(self.denoiser.parameters(), z).dtype)
        guided = (guidance or self.guidance)(self.denoiser, condition)
        if not self.objective.self_conditioning:
            return sampler(guided, path, z, streams)
        check_evaluated_once(sampler)
        return sampler(Remembering(guided), path, z, streams)

    def artifact(self, pictures: Callable[[], Iterable[Batch]]) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Weights and details that sampling needs; no pictures have to be measured for it."""
        return self.denoiser.network.state_dict(), {}


def _means(terms: Mapping[str, Term]) -> dict[str, Tensor]:
    """The mean loss, and those of its terms where there are several."""
    parts = {name: term.value.mean() for name, term in terms.items()} if len(terms) > 1 else {}
    return {"loss": total(terms).mean(), **parts}
