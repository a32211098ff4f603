from __future__ import annotations

import math
import os
from pathlib import Path

import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.utilities import rank_zero_only
from torch import Tensor
from torch.utils.data import DataLoader

from ldm_lightning.errors import UserError
from ldm_lightning.loggers.csv_log import CsvLogger, read_metrics


def test_every_call_is_on_disk_at_once_in_long_format(tmp_path: Path) -> None:
    logger = CsvLogger(tmp_path / "run")
    logger.log_metrics({"loss": 0.1 + 0.2, "lr": 1, "epoch": 0}, step=7)
    assert logger.path.read_text() == (
        "step,epoch,metric,value\n7,0,loss,0.30000000000000004\n7,0,lr,1.0\n"  # the epoch is a column, not a row
    )
    logger.log_metrics({"fid": math.inf}, step=8)
    assert logger.path.read_text().endswith("8,,fid,inf\n")


def test_values_come_back_exactly(tmp_path: Path) -> None:
    logger = CsvLogger(tmp_path)
    values = [1 / 3, 1e-300, -math.pi, math.inf, float(torch.rand(()))]
    for step, value in enumerate(values):
        logger.log_metrics({"x": value, 'odd, "name"\nof two lines': -value}, step)
    curves = read_metrics(logger.path)
    assert curves["x"] == list(enumerate(values))
    assert curves['odd, "name"\nof two lines'] == [(step, -value) for step, value in enumerate(values)]
    logger.log_metrics({"x": math.nan}, 9)
    assert math.isnan(read_metrics(logger.path)["x"][-1][1])


def test_rewind_drops_the_steps_that_are_trained_again(tmp_path: Path) -> None:
    logger = CsvLogger(tmp_path)
    for step in range(6):
        logger.log_metrics({"loss": step / 7, "epoch": step // 2}, step)
    head = "".join(logger.path.read_text().splitlines(keepends=True)[:5])  # header and steps 0 to 3
    logger.rewind(4)
    assert logger.path.read_text() == head
    logger.rewind(0)
    assert read_metrics(logger.path) == {}


def test_rewind_before_the_first_row_does_nothing(tmp_path: Path) -> None:
    logger = CsvLogger(tmp_path)
    logger.rewind(0)
    assert list(tmp_path.iterdir()) == []


def test_a_kill_during_rewind_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    logger = CsvLogger(tmp_path)
    for step in range(4):
        logger.log_metrics({"loss": 1.0}, step)
    before = logger.path.read_bytes()
    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            logger.rewind(2)
    assert logger.path.read_bytes() == before
    logger.rewind(2)  # what the first attempt left behind is no obstacle
    assert [path.name for path in tmp_path.iterdir()] == ["metrics.csv"]
    assert len(read_metrics(logger.path)["loss"]) == 2


@pytest.mark.parametrize("kept", range(len("step,epoch,metric,value\n1,0,loss,0.25\n") + 1))
def test_a_line_torn_anywhere_is_repaired(tmp_path: Path, kept: int) -> None:
    whole = "step,epoch,metric,value\n1,0,loss,0.25\n"
    logger = CsvLogger(tmp_path)
    logger.path.write_text(whole[:kept])
    read_metrics(logger.path)  # readable while torn
    logger.log_metrics({"loss": 0.5, "epoch": 0}, 2)
    assert read_metrics(logger.path)["loss"] == ([(1, 0.25)] if kept == len(whole) else []) + [(2, 0.5)]
    assert logger.path.read_text().startswith("step,epoch,metric,value\n")


def test_rewind_drops_a_torn_line(tmp_path: Path) -> None:
    logger = CsvLogger(tmp_path)
    logger.path.write_text("step,epoch,metric,value\n1,0,loss,0.25\n2,0,loss,0.2")
    logger.rewind(5)
    assert logger.path.read_text() == "step,epoch,metric,value\n1,0,loss,0.25\n"


def test_other_files_are_refused_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "metrics.csv").write_text("a,b\n1,2\n")
    with pytest.raises(UserError, match=r"not a metrics file.*'a,b'"):
        read_metrics(tmp_path / "metrics.csv")
    with pytest.raises(UserError, match="no metrics file"):
        read_metrics(tmp_path / "missing.csv")
    with pytest.raises(UserError, match="not a metrics file"):
        CsvLogger(tmp_path).rewind(0)
    assert (tmp_path / "metrics.csv").read_text() == "a,b\n1,2\n"


def test_only_rank_zero_writes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rank_zero_only, "rank", 1)
    logger = CsvLogger(tmp_path / "run")
    logger.log_metrics({"loss": 1.0}, 0)
    logger.rewind(0)
    assert list(tmp_path.iterdir()) == []


class Fit(pl.LightningModule):
    """A line fitted to a parabola on one and the same batch, so that only the weights tell a step from another."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.line = torch.nn.Linear(1, 1)

    def loss(self, x: Tensor) -> Tensor:
        return (self.line(x) - x**2).square().mean()

    def training_step(self, batch: Tensor, index: int) -> Tensor:
        loss = self.loss(batch)
        self.log("train/loss", loss)
        return loss

    def validation_step(self, batch: Tensor, index: int) -> None:
        self.log("val/loss", self.loss(batch))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


class Rewind(pl.Callback):
    def __init__(self, logger: CsvLogger) -> None:
        self.logger = logger

    def on_train_start(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        self.logger.rewind(trainer.global_step)


def fit(folder: Path, steps: int, resume: Path | None = None) -> bytes:
    data = DataLoader(torch.linspace(-1, 1, 8)[:, None].repeat(5, 1), batch_size=8)  # five batches an epoch
    logger = CsvLogger(folder)
    keep = pl.callbacks.ModelCheckpoint(folder, filename="{step}", every_n_train_steps=1, save_top_k=-1)
    trainer = pl.Trainer(
        max_steps=steps,
        accelerator="cpu",
        logger=logger,
        log_every_n_steps=1,
        callbacks=[Rewind(logger), keep],
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(Fit(), data, data, ckpt_path=resume, weights_only=resume is not None or None)
    return logger.path.read_bytes()


def test_killed_and_resumed_equals_never_killed(tmp_path: Path) -> None:
    whole = fit(tmp_path / "whole", 12)
    curves = read_metrics(tmp_path / "whole" / "metrics.csv")
    assert [step for step, _ in curves["train/loss"]] == list(range(12))
    assert [step for step, _ in curves["val/loss"]] == [4, 9]

    for saved, killed in [(3, 7), (7, 8), (6, 11)]:  # across an epoch's end, at once, and within an epoch
        folder = tmp_path / f"{saved}-{killed}"
        fit(folder, killed)
        assert fit(folder, 12, resume=folder / f"step={saved}.ckpt") == whole

    assert fit(tmp_path / "whole", 12) == whole  # starting over in the same folder leaves nothing of the first run
