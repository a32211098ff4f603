"""A run that was killed and resumed is, bit for bit, the run that was never killed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from ldm_lightning.artifact import read_artifact
from tests.conftest import STATEFUL_OBJECTIVE, TINY_ADVERSARIAL, TINY_FIRST_STAGE, TINY_LATENT_DIFFUSION

KILLED, STOPPED = -signal.SIGKILL, 128 + signal.SIGTERM


def starts(folder: Path, orders: list[dict[str, Any]]) -> list[tuple[int, str]]:
    """Exit code and words of each start, see ``killing.py``."""
    folder.mkdir(exist_ok=True)
    (folder / "orders.json").write_text(json.dumps(orders))
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "tests.training.killing", str(folder / "orders.json")]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=500, check=False)
    assert done.returncode == 0, done.stderr
    return [(code, said) for code, said in json.loads((folder / "results.json").read_text())]


def mirrored(pictures: Path) -> list[str]:
    return ["data=image_folder", f"data.root={pictures}", "data.transform.flip=true"]


def killed_is_never_killed(tmp_path: Path, overrides: list[str], kills: list[tuple[str, int, int]]) -> Path:
    """Compare a run with one that was killed at each of the moments in turn; return the latter."""
    whole, other = tmp_path / "whole", tmp_path / "killed"
    args = [*overrides, "name=run", f"runs={other}"]
    orders: list[dict[str, Any]] = [{"args": [*overrides, "name=run", f"runs={whole}"]}]
    orders += [{"args": args, "moment": moment, "step": step, "signal": number} for moment, step, number in kills]
    first, *stopped, last = starts(tmp_path / "orders", [*orders, {"args": args}])
    assert first[0] == 0, first[1]
    for (moment, _, number), (code, said) in zip(kills, stopped, strict=True):
        assert code == (KILLED if number == signal.SIGKILL else STOPPED), f"{moment}: {said}"
    assert last[0] == 0, last[1]
    same(other / "run", whole / "run")
    return other / "run"


def same(run: Path, undisturbed: Path) -> None:
    assert (run / "metrics.csv").read_text() == (undisturbed / "metrics.csv").read_text()
    ours, theirs = (read_artifact(folder).manifest for folder in (run, undisturbed))
    for key in theirs.keys() - {"config"}:
        assert ours[key] == theirs[key]
    for name in ("last.ckpt", "best.ckpt"):
        ours, theirs = (torch.load(f / "checkpoints" / name, weights_only=True) for f in (run, undisturbed))
        for part in ("global_step", "state_dict", "optimizer_states", "lr_schedulers", "callbacks", "DataModule"):
            equal(ours[part], theirs[part], part)
    sheets = {file.name: file.read_bytes() for file in (undisturbed / "samples").iterdir()}
    assert {file.name: file.read_bytes() for file in (run / "samples").iterdir()} == sheets
    assert not list(run.rglob("scratch.json"))  # half files


def equal(ours: Any, theirs: Any, where: str) -> None:
    """Nested dicts and lists hold the same numbers."""
    if isinstance(theirs, torch.Tensor):
        assert torch.equal(ours, theirs), where
    elif isinstance(theirs, dict):
        assert ours.keys() == theirs.keys(), where
        for key in theirs:
            equal(ours[key], theirs[key], f"{where}.{key}")
    elif isinstance(theirs, list | tuple):
        assert len(ours) == len(theirs), where
        for number, values in enumerate(zip(ours, theirs, strict=True)):
            equal(*values, f"{where}.{number}")
    else:
        assert ours == theirs, where


@pytest.mark.slow
def test_a_second_stage_killed_anywhere(pictures: Path, first_stage_run: Path, tmp_path: Path) -> None:
    """With everything that has a state of its own: averages, learned times, a distance at every second validation."""
    kill, stop = signal.SIGKILL, signal.SIGTERM
    overrides = [
        *mirrored(pictures),
        f"first_stage.run={first_stage_run}",
        *TINY_LATENT_DIFFUSION,
        *STATEFUL_OBJECTIVE,
        "callbacks=latent_diffusion_fd",
        "callbacks.gallery.n=4",
        "callbacks.frechet.every_n_validations=2",
        "extractor@callbacks.frechet.extractor=tiny",
        "trainer.max_steps=15",  # of 4 batches an epoch
        "trainer.val_check_interval=5",
        "callbacks.checkpoints.every_n_steps=5",
        "trainer.log_every_n_steps=2",
    ]
    killed_is_never_killed(
        tmp_path,
        overrides,
        [
            ("start", 0, kill),
            ("batch", 3, kill),
            ("half a checkpoint", 5, kill),
            ("amid validation", 5, kill),
            ("best saved, not last", 5, kill),
            ("validated, not saved", 5, kill),
            ("amid validation", 5, stop),  # made up for: to its end, then one step
            ("batch", 6, stop),  # at a step whose values are not logged
            ("batch", 9, stop),  # at the very step of a validation
            ("amid validation", 10, kill),
            ("batch", 11, stop),  # at the end of an epoch
            ("no last.ckpt", 12, kill),
            ("saved, not logged", 15, kill),
            ("amid validation", 15, kill),
            ("validated, not saved", 15, kill),
            ("half an export", 15, kill),
            ("exported", 15, kill),
        ],
    )


@pytest.mark.slow
def test_a_first_stage_killed_anywhere(pictures: Path, tmp_path: Path) -> None:
    """Both players of an adversarial one; validations and kills at the ends of epochs, the last at the last step."""
    kill, stop = signal.SIGKILL, signal.SIGTERM
    overrides = [
        *mirrored(pictures),
        *TINY_ADVERSARIAL,
        "first_stage.adversary.start=4",
        "first_stage.adversary.join=6",
        "trainer.max_steps=12",  # of 4 batches an epoch
        "trainer.val_check_interval=4",
        "callbacks.checkpoints.every_n_steps=2",
    ]
    killed_is_never_killed(
        tmp_path,
        overrides,
        [
            ("batch", 3, kill),
            ("amid validation", 4, kill),
            ("batch", 5, stop),
            ("batch", 7, stop),
            ("saved, not logged", 10, kill),
            ("amid validation", 12, kill),
            ("measuring", 12, kill),
            ("half an export", 12, kill),
            ("exported", 12, kill),
        ],
    )


@pytest.mark.slow
def test_a_stop_or_kill_amid_accumulated_batches_loses_none(pictures: Path, tmp_path: Path) -> None:
    overrides = [
        *mirrored(pictures),
        *TINY_FIRST_STAGE,
        "trainer.accumulate_grad_batches=3",  # of 4 batches an epoch, whose last one steps as well
        "trainer.val_check_interval=6",  # the first of them amid accumulated batches
        "trainer.max_steps=6",
        "callbacks.checkpoints.every_n_steps=1",
    ]
    kills = [("batch", 0, signal.SIGTERM), ("validated", 2, signal.SIGKILL), ("amid validation", 6, signal.SIGKILL)]
    killed_is_never_killed(tmp_path, overrides, kills)
