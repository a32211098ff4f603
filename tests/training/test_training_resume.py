"""A run that was killed and resumed is, bit for bit, the run that was never killed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from ldm_lightning.artifact import read_artifact

SLAY = """
from pytorch_lightning import Callback
import os
class Slay(Callback):
    def __init__(self, step, number): self.step, self.number = step, number
    def on_train_batch_start(self, trainer, module, batch, batch_idx):
        if trainer.global_step == self.step: os.kill(os.getpid(), self.number)
"""


def start(tmp_path: Path, *args: str) -> subprocess.CompletedProcess[str]:
    (tmp_path / "slay.py").write_text(SLAY)
    path = os.pathsep.join([str(tmp_path), *filter(None, [os.environ.get("PYTHONPATH")])])
    environment = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "ldm_lightning", "train", *args]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)


def overrides(pictures: Path, first_stage_run: Path, runs: Path) -> list[str]:
    from tests.conftest import TINY_LATENT_DIFFUSION

    return [
        "data=image_folder",
        f"data.root={pictures}",
        "name=run",
        f"runs={runs}",
        f"first_stage.run={first_stage_run}",
        *TINY_LATENT_DIFFUSION,
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


@pytest.mark.slow
@pytest.mark.parametrize(
    ("number", "code", "steps"),
    [
        (signal.SIGKILL, -signal.SIGKILL, (7, 11)),  # in the middle of epochs; right after a validation
        (signal.SIGTERM, 128 + signal.SIGTERM, (6,)),  # the batch in hand is finished, then everything is saved
    ],
)
def test_killed_and_resumed_is_never_killed(
    pictures: Path,
    first_stage_run: Path,
    undisturbed: Path,
    tmp_path: Path,
    number: signal.Signals,
    code: int,
    steps: tuple[int, ...],
) -> None:
    args = overrides(pictures, first_stage_run, tmp_path)
    for step in steps:
        slay = [f"+callbacks.slay={{_target_: slay.Slay, step: {step}, number: {int(number)}}}"]
        killed = start(tmp_path, *args, *slay)
        assert killed.returncode == code, killed.stderr
        (tmp_path / "run" / "config.yaml").unlink()  # it names the killer
    finished = start(tmp_path, *args)
    assert finished.returncode == 0, finished.stderr
    assert "resuming from last.ckpt" in finished.stderr
    ours, theirs = read_artifact(tmp_path / "run"), read_artifact(undisturbed)
    assert ours.manifest["sha256"] == theirs.manifest["sha256"]
    assert (tmp_path / "run" / "metrics.csv").read_text() == (undisturbed / "metrics.csv").read_text()


@pytest.mark.slow
def test_a_finished_run_is_left_alone(pictures: Path, first_stage_run: Path, undisturbed: Path) -> None:
    from tests.conftest import run_ldm

    before = {
        path: path.stat().st_mtime_ns for path in undisturbed.rglob("*") if path.name not in ("log.txt", "config.yaml")
    }
    again = run_ldm("train", *overrides(pictures, first_stage_run, undisturbed.parent))
    assert again.code == 0
    assert "is finished (step 14)" in again.err
    after = {path: path.stat().st_mtime_ns for path in undisturbed.rglob("*") if path in before}
    assert before == after
