from __future__ import annotations

from pathlib import Path

import pytest
from hydra.utils import instantiate
from omegaconf import OmegaConf
from pytorch_lightning.loggers import Logger, TensorBoardLogger

from ldm_lightning.loggers.wandb_log import WandbRun

CONF = Path(__file__).parents[2] / "conf" / "logger"


@pytest.mark.parametrize(
    ("choice", "kinds"), [("csv", []), ("wandb", [WandbRun]), ("tensorboard", [TensorBoardLogger])]
)
def test_every_choice_instantiates(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, choice: str, kinds: list[type[Logger]]
) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    config = OmegaConf.create(
        {"name": "tiny", "run_dir": str(tmp_path / "tiny"), "logger": OmegaConf.load(CONF / f"{choice}.yaml")}
    )
    loggers = [instantiate(entry) for entry in config.logger.values()]
    assert [type(logger) for logger in loggers] == kinds
    assert all(str(logger.save_dir).startswith(str(tmp_path / "tiny")) for logger in loggers)


def test_tags_reach_wandb_as_a_plain_list(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    config = OmegaConf.merge({"name": "tiny", "run_dir": str(tmp_path)}, OmegaConf.load(CONF / "wandb.yaml"))
    config.wandb.tags = ["a", "b"]
    assert type(instantiate(config.wandb)._wandb_init["tags"]) is list
