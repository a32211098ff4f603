"""What a run that goes on says of settings that may change, but have a say in what comes out."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from ldm_lightning.loggers.csv_log import read_metrics
from tests.conftest import TINY_FIRST_STAGE, Result

Ldm = Callable[..., Result]


SETTINGS = [*TINY_FIRST_STAGE, "data=image_folder", "learning_rate.warmup=1", "name=run"]
SETTINGS += ["callbacks.checkpoints.mode=max"]  # so that the best is the first, of step 3


@pytest.fixture(scope="module")
def finished(pictures: Path, tmp_path_factory: pytest.TempPathFactory, ldm: Ldm) -> Path:
    """A run of 6 steps down a cosine, validated after 3 and 6."""
    runs = tmp_path_factory.mktemp("finished")
    done = ldm("train", *SETTINGS, f"data.root={pictures}", f"runs={runs}")
    assert done.code == 0, done.err
    return runs / "run"


@pytest.fixture
def go_on(finished: Path, pictures: Path, tmp_path: Path, ldm: Ldm) -> Callable[..., str]:
    """Goes on with a copy of it; returns what the log says of that."""
    run = tmp_path / "run"
    shutil.copytree(finished, run)

    def train(*changes: str) -> str:
        (run / "log.txt").unlink()
        done = ldm("train", *SETTINGS, f"data.root={pictures}", f"runs={tmp_path}", *changes)
        assert done.code == 0, done.err
        return (run / "log.txt").read_text()

    return train


def test_a_course_that_is_stretched_is_announced_with_its_rate(go_on: Callable[..., str], tmp_path: Path) -> None:
    said = go_on("trainer.max_steps=12")
    (line,) = [line for line in said.splitlines() if "the learning rate goes on at" in line]
    promised = float(line.partition("goes on at ")[2].partition(",")[0])
    rates = dict(read_metrics(tmp_path / "run" / "metrics.csv")["train/lr"])
    assert rates[6] < rates[7] < promised  # the first step still takes the rate that was restored
    assert "trainer.max_steps" in line
    assert "little of optim.lr" not in line


def test_a_course_near_its_end_is_announced(go_on: Callable[..., str]) -> None:
    said = go_on("trainer.max_steps=7")
    assert said.count("the learning rate goes on at") == 1
    assert "little of optim.lr" in said


def test_a_run_of_the_same_length_has_nothing_to_say(go_on: Callable[..., str], tmp_path: Path) -> None:
    """As if it had been killed after its first validation."""
    run = tmp_path / "run"
    shutil.rmtree(run / "export")
    shutil.copy(run / "checkpoints" / "best.ckpt", run / "checkpoints" / "last.ckpt")
    said = go_on()
    assert "resuming from last.ckpt" in said
    assert "goes on at" not in said
    assert read_metrics(run / "metrics.csv")["train/lr"][-1][0] == 5


def test_another_measure_of_the_best_is_announced(go_on: Callable[..., str]) -> None:
    shorter = "trainer.limit_val_batches=1"
    said = go_on(shorter, "trainer.max_steps=7")
    assert said.count("was chosen by another measure (trainer.limit_val_batches: null -> 1)") == 1
    assert "another measure" not in go_on(shorter, "trainer.max_steps=8")  # said once
