"""A stage of a user's own: the mean picture, learned by gradient descent. Nothing in the package knows of it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import pytorch_lightning as pl
import torch
from omegaconf import DictConfig
from torch import Tensor

from ldm_lightning.data.batch import Batch
from ldm_lightning.data.datamodule import DataModule
from ldm_lightning.evaluation.figures import number
from ldm_lightning.experiment.measuring import Measured
from ldm_lightning.experiment.saved import read_artifact
from ldm_lightning.experiment.stages import Stage

MEAN_PICTURE = Stage("own_stage.MEAN_PICTURE", home="own_stage", learned="", recorded=())


class MeanPicture(pl.LightningModule):
    def __init__(self, shape: tuple[int, ...], rate: float) -> None:
        super().__init__()
        self.mean = torch.nn.Parameter(torch.zeros(shape))
        self.rate = rate

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), self.rate)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        return (batch.x - self.mean).square().mean(0).sum()

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        self.log("val/loss", (batch.x - self.mean).square().mean())

    def artifact(self, pictures: Callable[[], Iterable[Batch]]) -> tuple[dict[str, Tensor], dict[str, Any]]:
        return self.state_dict(), {}


def derive(config: DictConfig, data: DataModule) -> dict[str, Any]:
    return {"latent_channels": data.shape[0]}


def build(config: DictConfig) -> MeanPicture:
    derived = config.derived
    return MeanPicture((derived.channels, derived.height, derived.width), config.rate)


def load(run: str) -> Tensor:
    return read_artifact(run).weights["mean"]


def measure(config: DictConfig, data: DataModule) -> Measured:
    x = data.pictures("validation").x
    return Measured(
        {f"mse@{len(x)}": number((x - load(config.run)).square().mean())}, {"reference": "validation", "n": len(x)}
    )


def details(config: DictConfig, weights: Mapping[str, Tensor], root: str | None, place: str) -> dict[str, Any]:
    return {}


def operations(module: MeanPicture, data: DataModule) -> Mapping[str, int]:
    return {"a picture": module.mean.numel()}
