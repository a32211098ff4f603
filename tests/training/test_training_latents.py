"""From a cache, too, two processes train exactly what one does, and a killed run what an undisturbed one does."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from ldm_lightning.artifact import read_artifact
from ldm_lightning.loggers.csv_log import read_metrics
from tests.conftest import TINY_LATENT_DIFFUSION
from tests.training.test_training_resume import killed_is_never_killed

TINY = [text for text in TINY_LATENT_DIFFUSION if not text.startswith(("data.size", "data.validation"))]


@pytest.mark.slow
def test_two_ranks_are_one_rank_from_a_cache(latents: Path, tmp_path: Path) -> None:
    common = ["data=latents", f"data.root={latents}", *TINY, "callbacks=latent_diffusion_fd"]
    common += ["extractor@callbacks.frechet.extractor=tiny", f"runs={tmp_path}"]
    for name, more in (("one", []), ("two", ["trainer.devices=2", "trainer.strategy=ddp"])):
        command = [sys.executable, "-m", "ldm_lightning", "train", *common, f"name={name}", *more]
        done = subprocess.run(
            command,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            capture_output=True,
            text=True,
            timeout=400,
            check=False,
        )
        assert done.returncode == 0, done.stderr
    theirs, ours = (read_metrics(tmp_path / name / "metrics.csv") for name in ("one", "two"))
    assert ours.keys() == theirs.keys()
    for name, points in theirs.items():
        # Sums over ranks add in another order; nothing else may differ.
        assert [step for step, _ in ours[name]] == [step for step, _ in points]
        assert [v for _, v in ours[name]] == pytest.approx([v for _, v in points], rel=2e-4, abs=1e-6), name
    weights = read_artifact(tmp_path / "one").weights
    for name, weight in read_artifact(tmp_path / "two").weights.items():
        torch.testing.assert_close(weight, weights[name], rtol=1e-3, atol=1e-5)


@pytest.mark.slow
def test_killed_and_resumed_is_never_killed_from_a_cache(latents: Path, tmp_path: Path) -> None:
    args = ["data=latents", f"data.root={latents}", *TINY, "trainer.max_steps=10"]
    args += ["trainer.val_check_interval=5", "callbacks.checkpoints.every_n_steps=3"]
    killed_is_never_killed(tmp_path, args, [("batch", 7, signal.SIGKILL)])
