"""Every argument of Lightning's Trainer: taken, or refused in one line before anything is built."""

from __future__ import annotations

import csv
import inspect
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import pytorch_lightning as pl
import torch
from omegaconf import DictConfig, OmegaConf
from pytorch_lightning.callbacks import Timer

from ldm_lightning.errors import UserError
from ldm_lightning.experiment.compose import conf_dir
from ldm_lightning.experiment.launch import make_trainer, settle
from ldm_lightning.experiment.trainer_rules import check_trainer
from tests.conftest import TINY_FIRST_STAGE, Result, refused

MISTAKES = {
    "max_steps": [0, -2],
    "max_epochs": [0, -2, 1.5],
    "min_steps": [-1],
    "min_epochs": ["x"],
    "max_time": ["12h", "1:2:3", 3600, {"hors": 1}],
    "val_check_interval": [0, 0.5, None, "00:00:10:00"],
    "check_val_every_n_epoch": [0, 0.5],
    "limit_train_batches": [0, 0.0, 1.5, -1, "all"],
    "limit_val_batches": [1.5, -1, "none"],
    "limit_test_batches": [1],
    "limit_predict_batches": [1],
    "log_every_n_steps": [0, None],
    "num_sanity_val_steps": [-2, 0.5],
    "num_nodes": [0, "x"],
    "devices": [0, -2, "x", [0, 0], [], [-1], "0,0", 1.5],
    "accelerator": ["gpus", "tpu", "mps", None],
    "strategy": ["dpp", "fsdp", "deepspeed"],
    "precision": ["bf17", 64, "bf16-true", "16-true", None],
    "accumulate_grad_batches": [0, {0: 2}],
    "gradient_clip_val": [-1.0, "x", float("inf")],
    "gradient_clip_algorithm": ["norms"],
    "deterministic": ["yes", 1],
    "benchmark": ["x"],
    "detect_anomaly": [None, 2],
    "sync_batchnorm": ["x"],
    "inference_mode": ["x"],
    "profiler": ["simpel", True],
    "fast_dev_run": [True, 3],
    "overfit_batches": [2, 0.5],
    "barebones": [True],
    "callbacks": [[], {"_target_": "pytorch_lightning.callbacks.Timer"}],
    "logger": [True, False],
    "plugins": [[]],
    "default_root_dir": ["/tmp"],
    "enable_checkpointing": [False],
    "use_distributed_sampler": [True],
    "reload_dataloaders_every_n_epochs": [1],
    "model_registry": ["x"],
}
TAKEN = {
    "max_steps": [1, -1],
    "max_epochs": [1, None],
    "min_steps": [3, None],
    "min_epochs": [1],
    "max_time": ["00:12:00:00", {"hours": 1}],
    "val_check_interval": [7],
    "limit_train_batches": [3, 0.5, 1.0],
    "limit_val_batches": [0, 0.0, 2, 0.5],
    "log_every_n_steps": [1],
    "num_sanity_val_steps": [-1, 2],
    "num_nodes": [1],
    "devices": [1, "1", "auto"],
    "accelerator": ["cpu", "auto"],
    "strategy": ["auto", "ddp"],
    "precision": ["32-true", 32, "bf16-mixed"],
    "accumulate_grad_batches": [2],
    "gradient_clip_val": [0, 0.5, None],
    "gradient_clip_algorithm": ["norm", "value"],
    "deterministic": [True, "warn"],
    "benchmark": [True],
    "detect_anomaly": [True],
    "sync_batchnorm": [True],
    "inference_mode": [True],
    "profiler": ["simple"],
    "fast_dev_run": [False],
    "enable_checkpointing": [True],
    "enable_progress_bar": [False],
    "enable_model_summary": [True],
    "enable_autolog_hparams": [False],
}


def _trainer(**changes: object) -> DictConfig:
    config = OmegaConf.load(conf_dir() / "trainer" / "default.yaml")
    merged = OmegaConf.merge(config, {"accelerator": "cpu", "devices": 1}, changes)
    assert isinstance(merged, DictConfig)
    return merged


def test_every_argument_is_looked_at() -> None:
    assert set(inspect.signature(pl.Trainer).parameters) <= MISTAKES.keys() | TAKEN.keys()


@pytest.mark.parametrize("key", MISTAKES)
def test_what_cannot_be_is_refused_in_one_line(key: str) -> None:
    for value in MISTAKES[key]:
        with pytest.raises(UserError, match=rf"^trainer\.{key}=") as refusal:
            check_trainer(_trainer(**{key: value}))
        assert "\n" not in str(refusal.value)


@pytest.fixture
def _settings_of_torch() -> Iterator[None]:
    """Some arguments set what holds for all of torch, and for the tests after this."""
    cudnn = torch.backends.cudnn
    before = torch.get_deterministic_debug_mode(), cudnn.benchmark, torch.is_anomaly_enabled()
    workspace = os.environ.get("CUBLAS_WORKSPACE_CONFIG")
    yield
    torch.set_deterministic_debug_mode(before[0])
    cudnn.benchmark = before[1]
    torch.autograd.set_detect_anomaly(before[2])
    os.environ.pop("CUBLAS_WORKSPACE_CONFIG", None)
    if workspace is not None:
        os.environ["CUBLAS_WORKSPACE_CONFIG"] = workspace


@pytest.mark.usefixtures("_settings_of_torch")
@pytest.mark.parametrize("key", TAKEN)
def test_what_can_be_is_taken(key: str, tmp_path: Path) -> None:
    for value in TAKEN[key]:
        trainer = _trainer(**{"val_check_interval": 6, key: value})
        check_trainer(trainer)
        config = OmegaConf.create({"trainer": trainer, "run_dir": str(tmp_path)})
        settle(config)
        made = make_trainer(config, logger=False, default_root_dir=str(tmp_path))
        assert isinstance(made, pl.Trainer)
        assert any(isinstance(callback, Timer) for callback in made.callbacks) == (key == "max_time")


@pytest.mark.parametrize(
    ("changes", "fragment"),
    [
        ({"devices": -1}, "a number of processes"),
        ({"devices": [0, 1]}, "a number of processes"),
        ({"precision": "16-mixed"}, "needs a GPU"),
        ({"precision": 16}, "needs a GPU"),
    ],
)
def test_what_a_processor_lacks_is_refused(changes: dict[str, object], fragment: str) -> None:
    config = OmegaConf.create({"trainer": _trainer(**changes), "run_dir": "runs/x"})
    check_trainer(config.trainer)

    def launch() -> None:
        settle(config)
        make_trainer(config)

    with pytest.raises(UserError, match=fragment):
        launch()


@pytest.mark.usefixtures("_settings_of_torch")
def test_validations_counted_in_short_epochs(pictures: Path, tmp_path: Path, ldm: Callable[..., Result]) -> None:
    """Batches of 16 of some 64 pictures: an epoch cut to three of them, and a validation at the end of every second."""
    data = ["data=image_folder", f"data.root={pictures}", *TINY_FIRST_STAGE, f"runs={tmp_path}", "name=run"]
    epochs = ["trainer.check_val_every_n_epoch=2", "+trainer.limit_train_batches=3", "trainer.max_steps=12"]
    more = ["trainer.num_sanity_val_steps=1", "+trainer.deterministic=true", "+trainer.gradient_clip_algorithm=value"]
    done = ldm("train", *data, "trainer.val_check_interval=2000", *epochs, *more)
    assert done.code == 0, done.err
    with (tmp_path / "run" / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [int(row["step"]) for row in rows if row["metric"] == "val/loss"] == [5, 11]
    assert {int(row["epoch"]) for row in rows if row["step"] == "11"} == {3}
    short = "+trainer.limit_train_batches=0.1"
    refused(ldm("train", *data, "name=other", short), "limit_train_batches=0.1", "no batch")


def test_what_only_the_data_show_is_one_line_too(pictures: Path, tmp_path: Path, ldm: Callable[..., Result]) -> None:
    data = ["data=image_folder", f"data.root={pictures}", *TINY_FIRST_STAGE, f"runs={tmp_path}", "name=run"]
    refused(ldm("train", *data, "trainer.limit_val_batches=0.01"), "trainer: ", "limit_val_batches", "0.01")
