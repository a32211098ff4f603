"""The average is the one its formula says, and only validation and exports see it."""

from __future__ import annotations

from pathlib import Path

import pytorch_lightning as pl
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from ldm_lightning.callbacks.ema import Ema


class Line(pl.LightningModule):
    """Fits y = 2 x; remembers its weight after every step and during validation."""

    def __init__(self) -> None:
        super().__init__()
        self.denoiser = nn.Linear(1, 1, bias=False)
        self.other = nn.Linear(1, 1)
        nn.init.zeros_(self.denoiser.weight)
        self.live: list[float] = []
        self.validated: list[float] = []

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.denoiser.parameters(), lr=0.1)

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        return (self.denoiser(batch) - 2 * batch).square().mean()

    def on_train_batch_end(self, *args: object) -> None:
        self.live.append(self.denoiser.weight.item())

    def validation_step(self, batch: Tensor, batch_idx: int) -> None:
        self.validated.append(self.denoiser.weight.item())


def fit(
    ema: Ema, steps: int, accumulate: int = 1, before: tuple[pl.Callback, ...] = (), after: tuple[pl.Callback, ...] = ()
) -> tuple[Line, pl.Trainer]:
    module = Line()
    loader = DataLoader(torch.ones(16, 1), batch_size=2)
    trainer = pl.Trainer(
        max_steps=steps,
        accelerator="cpu",
        devices=1,
        logger=False,
        callbacks=[*before, ema, *after],
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        val_check_interval=4,
        check_val_every_n_epoch=None,
        accumulate_grad_batches=accumulate,
    )
    trainer.fit(module, loader, DataLoader(torch.ones(2, 1), batch_size=2))
    return module, trainer


def expected(weights: list[float], decay: float) -> float:
    average = 0.0
    for n, weight in enumerate(weights, start=1):
        d = min(decay, (1 + n) / (10 + n))
        average = d * average + (1 - d) * weight
    return average


def test_it_is_the_warmed_up_average() -> None:
    ema = Ema(decay=0.5)
    module, _ = fit(ema, 8)
    assert len(set(module.live)) == 8
    torch.testing.assert_close(ema.average["weight"].item(), expected(module.live, 0.5))
    assert set(ema.average) == {"weight"}  # of the denoiser only


def test_validation_sees_the_average_and_training_does_not() -> None:
    ema = Ema(decay=0.9)
    module, _ = fit(ema, 8)
    assert len(module.validated) == 2
    torch.testing.assert_close(module.validated[0], expected(module.live[:4], 0.9))
    torch.testing.assert_close(module.denoiser.weight.item(), module.live[-1])
    with ema.averaged(module):
        torch.testing.assert_close(module.denoiser.weight.item(), expected(module.live, 0.9))
    torch.testing.assert_close(module.denoiser.weight.item(), module.live[-1])


def test_accumulated_batches_count_once() -> None:
    ema = Ema(decay=0.9)
    module, _ = fit(ema, 4, accumulate=2)
    torch.testing.assert_close(ema.average["weight"].item(), expected(module.live[1::2], 0.9))


def test_its_state_survives_weights_only_loading(tmp_path: object) -> None:
    ema = Ema(decay=0.9)
    fit(ema, 4)
    path = f"{tmp_path}/state.pt"
    torch.save(ema.state_dict(), path)
    again = Ema(decay=0.9)
    again.load_state_dict(torch.load(path, weights_only=True))
    assert again.step == 4
    assert again.average["weight"] == ema.average["weight"]


class Look(pl.Callback):
    """Exports and saves a checkpoint at the start and at the end of a validation."""

    def __init__(self, ema: Ema, folder: Path) -> None:
        self.ema, self.folder = ema, folder
        self.exported: list[float] = []
        self.saved: list[tuple[float, float]] = []

    def look(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        with self.ema.averaged(pl_module):
            self.exported.append(pl_module.get_parameter("denoiser.weight").item())
        trainer.save_checkpoint(self.folder / "any.ckpt", weights_only=False)
        state = torch.load(self.folder / "any.ckpt", weights_only=True)
        average = state["callbacks"]["Ema"]["average"]["weight"]
        self.saved.append((state["state_dict"]["denoiser.weight"].item(), average.item()))

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.look(trainer, pl_module)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.look(trainer, pl_module)


def test_the_order_of_callbacks_makes_no_difference(tmp_path: Path) -> None:
    ema = Ema(decay=0.9)
    before, after = Look(ema, tmp_path), Look(ema, tmp_path)
    module, _ = fit(ema, 4, before=(before,), after=(after,))
    average = expected(module.live, 0.9)
    assert abs(average - module.live[-1]) > 0.1
    torch.testing.assert_close(before.exported + after.exported, [average] * 4)
    for live, kept in before.saved + after.saved:
        torch.testing.assert_close((live, kept), (module.live[-1], average))
    torch.testing.assert_close(module.denoiser.weight.item(), module.live[-1])
