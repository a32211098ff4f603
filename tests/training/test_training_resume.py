"""A run that was killed and resumed is, bit for bit, the run that was never killed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from ldm_lightning.artifact import read_artifact

SLAY = """
from pytorch_lightning import Callback
import os
class Slay(Callback):
    def __init__(self, step, number, hook): self.step, self.number, self.hook = step, number, hook
    def slay(self, trainer, hook):
        if hook == self.hook and trainer.global_step == self.step: os.kill(os.getpid(), self.number)
    def on_train_batch_start(self, trainer, *args): self.slay(trainer, "batch")
    def on_validation_start(self, trainer, *args): self.slay(trainer, "validation")
    def on_fit_end(self, trainer, *args): self.slay(trainer, "end")
"""


def start(tmp_path: Path, *args: str) -> subprocess.CompletedProcess[str]:
    (tmp_path / "slay.py").write_text(SLAY)
    path = os.pathsep.join([str(tmp_path), *filter(None, [os.environ.get("PYTHONPATH")])])
    environment = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "ldm_lightning", "train", *args]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)


def overrides(pictures: Path, first_stage_run: Path, runs: Path, adversarial: bool = False) -> list[str]:
    from tests.conftest import TINY_ADVERSARIAL, TINY_LATENT_DIFFUSION

    return [
        "data=image_folder",
        f"data.root={pictures}",
        "name=run",
        f"runs={runs}",
        *(TINY_ADVERSARIAL if adversarial else [f"first_stage.run={first_stage_run}", *TINY_LATENT_DIFFUSION]),
        "trainer.max_steps=14",  # 64 training pictures: 4 batches an epoch
        "trainer.val_check_interval=5",
        "callbacks.checkpoints.every_n_steps=3",
        "data.transform.flip=true",
    ]


@pytest.fixture(scope="module")
def undisturbed(pictures: Path, first_stage_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    runs = tmp_path_factory.mktemp("undisturbed")
    done = start(runs, *overrides(pictures, first_stage_run, runs))
    assert done.returncode == 0, done.stderr
    return runs / "run"


def kill(tmp_path: Path, args: list[str], step: int, number: int, hook: str) -> subprocess.CompletedProcess[str]:
    slayer = f"+callbacks.slay={{_target_: slay.Slay, step: {step}, number: {number}, hook: {hook}}}"
    killed = start(tmp_path, *args, slayer)
    (tmp_path / "run" / "config.yaml").unlink()  # it names the killer
    return killed


def same(run: Path, undisturbed: Path) -> None:
    assert read_artifact(run).manifest["sha256"] == read_artifact(undisturbed).manifest["sha256"]
    assert (run / "metrics.csv").read_text() == (undisturbed / "metrics.csv").read_text()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("number", "moments"),
    [
        # In the middle of an epoch, during a validation, after the last step but before the export.
        (signal.SIGKILL, [(7, "batch"), (10, "validation"), (14, "end")]),
        # The step in hand is finished, then everything is saved.
        (signal.SIGTERM, [(6, "batch")]),
    ],
)
def test_killed_and_resumed_is_never_killed(
    pictures: Path,
    first_stage_run: Path,
    undisturbed: Path,
    tmp_path: Path,
    number: signal.Signals,
    moments: list[tuple[int, str]],
) -> None:
    args = overrides(pictures, first_stage_run, tmp_path)
    for step, hook in moments:
        killed = kill(tmp_path, args, step, int(number), hook)
        assert killed.returncode == (-9 if number == signal.SIGKILL else 128 + number), killed.stderr
    finished = start(tmp_path, *args)
    assert finished.returncode == 0, finished.stderr
    assert "resuming from last.ckpt" in finished.stderr
    same(tmp_path / "run", undisturbed)


@pytest.mark.slow
def test_times_that_learn_from_losses_resume_where_they_were(
    pictures: Path, first_stage_run: Path, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    from tests.conftest import STATEFUL_OBJECTIVE

    whole = tmp_path_factory.mktemp("whole")
    done = start(whole, *overrides(pictures, first_stage_run, whole), *STATEFUL_OBJECTIVE)
    assert done.returncode == 0, done.stderr
    args = [*overrides(pictures, first_stage_run, tmp_path), *STATEFUL_OBJECTIVE]
    for step, number in ((7, signal.SIGKILL), (11, signal.SIGTERM)):
        kill(tmp_path, args, step, int(number), "batch")
    finished = start(tmp_path, *args)
    assert finished.returncode == 0, finished.stderr
    assert "resuming from last.ckpt" in finished.stderr
    same(tmp_path / "run", whole / "run")


def test_killed_and_resumed_against_an_adversary(
    pictures: Path, first_stage_run: Path, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Both players, their optimizer's state, spectral norms and moving averages resume bit for bit."""
    whole = tmp_path_factory.mktemp("adversarial")
    more = ["first_stage.adversary.start=5", "first_stage.adversary.join=8", "trainer.max_steps=14"]
    done = start(whole, *overrides(pictures, first_stage_run, whole, adversarial=True), *more)
    assert done.returncode == 0, done.stderr
    args = [*overrides(pictures, first_stage_run, tmp_path, adversarial=True), *more]
    # Before it learns, before it is heard, and after.
    for step, number in ((4, signal.SIGKILL), (7, signal.SIGTERM), (11, signal.SIGKILL)):
        killed = kill(tmp_path, args, step, int(number), "batch")
        assert killed.returncode == (-9 if number == signal.SIGKILL else 128 + number), killed.stderr
    finished = start(tmp_path, *args)
    assert finished.returncode == 0, finished.stderr
    same(tmp_path / "run", whole / "run")
    ends = [torch.load(run / "run/checkpoints/last.ckpt", weights_only=True) for run in (tmp_path, whole)]
    assert ends[0]["global_step"] == ends[1]["global_step"] == 14
    for name, value in ends[1]["state_dict"].items():
        assert torch.equal(ends[0]["state_dict"][name], value), name


@pytest.mark.slow
def test_a_signal_to_the_whole_group_is_saved_with_workers(
    pictures: Path, first_stage_run: Path, tmp_path: Path
) -> None:
    # Sent by another process, since torch's workers take SIGTERM from their parent for a farewell; and with a pause,
    # for a dying worker to be noticed, which raises in the parent.
    sent = (
        "subprocess.run(['kill', f'-{self.number}', '--', f'-{os.getpgrp()}'], start_new_session=True); time.sleep(2)"
    )
    whole = SLAY.replace("os.kill(os.getpid(), self.number)", sent)
    (tmp_path / "slay.py").write_text("import subprocess, time" + whole)
    slayer = f"+callbacks.slay={{_target_: slay.Slay, step: 6, number: {int(signal.SIGTERM)}, hook: batch}}"
    args = [*overrides(pictures, first_stage_run, tmp_path), "data.num_workers=2", slayer]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])}
    command = [sys.executable, "-m", "ldm_lightning", "train", *args]
    stopped = subprocess.run(
        command, env=environment, capture_output=True, text=True, timeout=300, check=False, start_new_session=True
    )
    assert stopped.returncode == 128 + signal.SIGTERM, stopped.stderr
    assert "stopped by SIGTERM at step 7, saved" in stopped.stderr
    assert "Traceback" not in stopped.stderr


@pytest.mark.slow
def test_a_stop_amid_accumulated_batches_loses_none(
    pictures: Path, first_stage_run: Path, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    more = ["trainer.accumulate_grad_batches=4", "trainer.val_check_interval=12", "trainer.max_steps=4"]
    whole = tmp_path_factory.mktemp("whole")
    done = start(whole, *overrides(pictures, first_stage_run, whole), *more)
    assert done.returncode == 0, done.stderr
    args = [*overrides(pictures, first_stage_run, tmp_path), *more]
    killed = kill(tmp_path, args, 1, int(signal.SIGTERM), "batch")  # at the first of the four batches of step 2
    assert killed.returncode == 128 + signal.SIGTERM, killed.stderr
    assert "at step 2" in killed.stderr
    assert start(tmp_path, *args).returncode == 0
    same(tmp_path / "run", whole / "run")


@pytest.mark.slow
def test_a_finished_run_is_left_alone(pictures: Path, first_stage_run: Path, undisturbed: Path) -> None:
    from tests.conftest import run_ldm

    before = {
        path: path.stat().st_mtime_ns
        for path in undisturbed.rglob("*")
        if path.is_file() and path.name not in ("log.txt", "config.yaml")
    }
    again = run_ldm("train", *overrides(pictures, first_stage_run, undisturbed.parent))
    assert again.code == 0
    assert "is finished (step 14)" in again.err
    after = {path: path.stat().st_mtime_ns for path in undisturbed.rglob("*") if path in before}
    assert before == after
