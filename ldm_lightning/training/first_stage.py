"""Stage one: training the autoencoder."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.utilities.types import OptimizerLRSchedulerConfig
from torch import Tensor, nn
from torch.optim import Optimizer
from tqdm import tqdm

from ldm_lightning.data.batch import Batch
from ldm_lightning.latent.autoencoder import Autoencoder
from ldm_lightning.latent.codes import CodeUsage, code_figures, count_codes
from ldm_lightning.latent.figures import LatentFigures
from ldm_lightning.latent.reconstruction import ReconstructionLoss
from ldm_lightning.latent.regularization import Passage
from ldm_lightning.latent.scale import LatentStatistics
from ldm_lightning.loss import Term, total
from ldm_lightning.metrics.reconstruction import reconstruction_metrics
from ldm_lightning.rng import Streams
from ldm_lightning.training.adversary import Adversary
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
        regularizers: further terms by name, modules called with a :class:`Passage`; they see training only.
        adversary: judges reconstructions, if there is one.
        seed: of the posterior's noise.
    """

    def __init__(
        self,
        *,
        autoencoder: Autoencoder,
        loss: ReconstructionLoss,
        optimizer: MakeOptimizer,
        learning_rate: LearningRate,
        regularizers: Mapping[str, nn.Module] | None = None,
        adversary: Adversary | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.autoencoder = autoencoder
        self.loss = loss
        self.optimizer = optimizer
        self.learning_rate = learning_rate
        self.regularizers = nn.ModuleDict(dict(regularizers or {}))
        self.adversary = adversary
        self.seed = seed
        self.val_means = Means()
        self.val_metrics = reconstruction_metrics()
        self.val_latents = LatentFigures(autoencoder.latent_channels, autoencoder.in_channels)
        self.val_usage = CodeUsage(autoencoder.bottleneck.groups, autoencoder.bottleneck.codes)

    def configure_optimizers(self) -> OptimizerLRSchedulerConfig:
        """One optimizer and schedule over the whole run; an adversary's parameters are a group of their own."""
        groups: list[dict[str, Any]] = [{"params": [*self.autoencoder.parameters(), *self.regularizers.parameters()]}]
        if self.adversary is not None:
            groups.append({"params": list(self.adversary.parameters()), **self.adversary.optimizer})
        return configure(self, groups, self.optimizer, self.learning_rate)

    def on_fit_start(self) -> None:
        """Say so if the adversary will never be heard."""
        if self.adversary is not None:
            self.adversary.announce(self.trainer.max_steps)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Encode, draw, decode, compare."""
        step, autoencoder = self.global_step, self.autoencoder
        posterior = autoencoder.encode(batch.x)
        streams = Streams(self.seed, batch.index, batch.epoch)
        z = posterior.sample(streams)
        autoencoder.bottleneck.observe(posterior, streams, step)
        reconstruction = autoencoder.decode(z)
        terms = self.loss(batch.x, reconstruction, posterior)
        fidelity = total(terms)
        if self.regularizers:
            passage = self._passage(batch.x, z, terms, step)
            terms |= {name: regularizer(passage) for name, regularizer in self.regularizers.items()}
        if self.adversary is None:
            loss = objective = total(terms)
        else:
            judged = self.adversary.judge(step, batch.x, reconstruction, fidelity, autoencoder.last_layer)
            terms |= judged.heard
            loss = total(terms)
            objective = loss + total(judged.own)
            if log_due(self):
                self._log_terms("train/discriminator", judged.own, len(batch))
                said = {f"train/discriminator/{name}": value for name, value in judged.said.items()}
                self.log_dict(said, sync_dist=True, batch_size=len(batch))
        if log_due(self):
            self._log_terms("train", terms, len(batch))
            if (numbers := posterior.numbers()) is not None:
                figures = code_figures(count_codes(numbers, autoencoder.bottleneck.codes))
                values = {f"train/batch_{name}": value for name, value in figures.items()}
                self.log_dict(values, sync_dist=True, batch_size=len(batch))
            self.log("train/loss", loss, sync_dist=True, prog_bar=True, batch_size=len(batch))
            self.log("train/lr", self.trainer.optimizers[0].param_groups[0]["lr"])
        return objective

    def _passage(self, x: Tensor, z: Tensor, terms: Mapping[str, Term], step: int) -> Passage:
        """What regularizers see of a batch."""
        return Passage(
            x=x,
            z=z,
            decode=self.autoencoder.decode,
            streams=Streams(self.seed, torch.zeros(1, dtype=torch.int64), step),
            fidelity=total({name: terms[name] for name in ("reconstruction", "perceptual") if name in terms}),
            encoder_layer=self.autoencoder.encoder_layer,
        )

    def _log_terms(self, place: str, terms: dict[str, Term], samples: int) -> None:
        """Every term and its weight."""
        values = {f"{place}/{name}": term.value for name, term in terms.items()}
        self.log_dict(values, sync_dist=True, batch_size=samples)
        weights = {f"{place}/weight/{name}": torch.as_tensor(term.weight).float() for name, term in terms.items()}
        self.log_dict(weights)

    def on_before_optimizer_step(self, optimizer: Optimizer) -> None:
        """A bottleneck with a state moves on, whatever number of batches it took; an adversary may still rest."""
        self.autoencoder.bottleneck.advance(self.global_step)
        if self.adversary is not None:
            self.adversary.rest(self.global_step)

    def configure_gradient_clipping(
        self, optimizer: Optimizer, gradient_clip_val: float | None = None, gradient_clip_algorithm: str | None = None
    ) -> None:
        """Clip each parameter group by itself: one player's large gradient must not shorten the other's."""
        if not gradient_clip_val:
            return
        clip = nn.utils.clip_grad_value_ if gradient_clip_algorithm == "value" else nn.utils.clip_grad_norm_
        for group in optimizer.param_groups:
            clip(group["params"], gradient_clip_val)

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """The loss and the reconstruction metrics of the posterior's mode, and what the latents look like."""
        posterior = self.autoencoder.encode(batch.x)
        reconstruction = self.autoencoder.decode(posterior.mode())
        terms = self.loss(batch.x, reconstruction, posterior)
        self.val_metrics.update(reconstruction, batch.x)
        self.val_latents.update(posterior, batch.x)
        if (numbers := posterior.numbers()) is not None:
            self.val_usage.update(numbers)
        values = {name: term.value for name, term in terms.items()}
        self.val_means.update(values | {"loss": total(terms)}, len(batch))

    def on_validation_epoch_end(self) -> None:
        """Log loss, metrics and figures of the latents over all of the validation set."""
        losses, figures = self.val_means.pop(), self.val_metrics.compute()
        figures |= {f"latent/{name}": value for name, value in self.val_latents.pop().items()}
        if self.autoencoder.bottleneck.codes:
            figures |= self.val_usage.compute()
            self.val_usage.reset()
        self.log_dict({f"val/{name}": value for name, value in losses.items()})
        self.log_dict({f"val/{name}@{self.val_means.samples}": value for name, value in figures.items()})
        self.val_metrics.reset()

    @torch.no_grad()
    def reconstruct(self, x: Tensor) -> Tensor:
        """Pictures (B, C, H, W) in [-1, 1] through the posterior's mode and back."""
        return self.autoencoder.decode(self.autoencoder.encode(x).mode())

    @torch.no_grad()
    def artifact(self, pictures: Callable[[], Iterable[Batch]]) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Weights and details that the next stage needs, among them the statistics of the latents.

        Args:
            pictures: gives this rank's share of the batches to measure them on; all ranks must call this.
        """
        statistics = LatentStatistics(self.autoencoder.latent_channels).to(self.device)
        for batch in tqdm(pictures(), desc="measuring latents", unit="batch", disable=self.global_rank > 0):
            statistics.update(self.autoencoder.encode(batch.x.to(self.device)))
        return self.autoencoder.state_dict(), {"statistics": statistics.compute()}
