"""``ldm doctor`` on really trained runs: what is broken on purpose is named, and what it advises mends it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from ldm_lightning.experiment.run_folder import lock
from ldm_lightning.loggers.csv_log import read_metrics
from tests.conftest import TINY_FIRST_STAGE, Result

Ldm = Callable[..., Result]


@pytest.fixture
def train(pictures: Path, tmp_path: Path, ldm: Ldm) -> Callable[..., Path]:
    """Trains a tiny first stage on real digits, for a while."""

    def run(name: str, *overrides: str) -> Path:
        longer = ["trainer.max_steps=60", "trainer.val_check_interval=15", "optim.lr=0.005", "learning_rate.warmup=5"]
        data = ["data=image_folder", f"data.root={pictures}", *TINY_FIRST_STAGE, *longer]
        done = ldm("train", *data, *overrides, f"runs={tmp_path}", f"name={name}")
        assert done.code == 0, done.err
        return tmp_path / name

    return run


def verdicts(run: Path, ldm: Ldm) -> tuple[str, dict[str, dict[str, str]]]:
    done = ldm("doctor", f"run={run}")
    assert done.code == 0, done.err
    assert max(map(len, done.out.splitlines())) <= 100 + len(str(run))
    written = json.loads((run / "evaluation" / "doctor.json").read_text())
    return done.out, {verdict["subject"]: verdict for verdict in written["verdicts"]}


def wrong(found: dict[str, dict[str, str]]) -> set[str]:
    return {subject for subject, verdict in found.items() if verdict["state"] == "wrong"}


@pytest.mark.slow
def test_a_collapse_is_named_and_its_advice_mends_it(train: Callable[..., Path], ldm: Ldm) -> None:
    text, found = verdicts(train("collapsed", "first_stage.loss.kl_weight=30"), ldm)
    assert wrong(found) == {"collapsed channels"}
    assert "COLLAPSED CHANNELS" in text
    assert "0 of 4 channels are active" in found["collapsed channels"]["seen"]
    override = found["collapsed channels"]["change"][0].partition(":")[0]
    assert override == "first_stage.loss.kl_weight=1e-04"
    text, found = verdicts(train("mended", override), ldm)
    assert wrong(found) == set()
    assert "nothing looks wrong" in text
    assert "4 of 4 channels are active" in found["active channels"]["seen"]


@pytest.mark.slow
def test_dead_codes_are_named_and_their_advice_mends_them(train: Callable[..., Path], ldm: Ldm) -> None:
    """A book that is never revived and forgets quickly, with an encoder that is held to the codes it has."""
    node = "first_stage.autoencoder.bottleneck"
    book = ["first_stage=vq_f4_tiny", f"{node}.codes=64", f"{node}.commitment_weight=16", "data.validation=0.5"]
    _, found = verdicts(train("dead", *book, f"{node}.dead=0", f"{node}.decay=0.3"), ldm)
    assert wrong(found) == {"dead codes"}
    override = found["dead codes"]["change"][0].partition(":")[0]
    assert override == f"{node}.dead=0.03"
    mended = train("mended", *book, f"{node}.decay=0.3", override, f"{node}.restart_every=5")
    assert wrong(verdicts(mended, ldm)[1]) == set()


def test_runs_of_both_stages_are_read(first_stage_run: Path, latent_diffusion_run: Path, ldm: Ldm) -> None:
    for run in (first_stage_run, latent_diffusion_run):
        text, found = verdicts(run, ldm)
        assert found["finished"]["state"] == "fine"
        assert found["falling loss"]["state"] == "unknown"  # six steps
        assert "Not to be judged" in text
    assert "standardized latents" in found


def test_a_run_is_read_while_it_trains_and_after_it_was_stopped(
    first_stage_run: Path, tmp_path: Path, ldm: Ldm
) -> None:
    run = tmp_path / "stopped"
    shutil.copytree(first_stage_run, run)
    shutil.rmtree(run / "export")
    # The rate of these six steps rises all the time: its warmup is a hundred.
    assert wrong(verdicts(run, ldm)[1]) == {"not finished", "learning rate rises for most of the run"}
    with lock(run):
        assert "in training just now" in verdicts(run, ldm)[1]
    (run / "metrics.csv").unlink()
    shutil.rmtree(run / "checkpoints")
    text, _ = verdicts(run, ldm)
    assert "there is no checkpoint yet" in text


def test_every_channel_has_figures_at_every_validation(first_stage_run: Path) -> None:
    logged = read_metrics(first_stage_run / "metrics.csv")
    (n,) = {name.partition("@")[2] for name in logged if name.startswith("val/latent/active@")}
    names = [f"{name}/{c}" for name in ("mean", "std", "sigma") for c in range(4)]
    for name in [*names, "active", "noise", "places", "spectrum/2", "spectrum/4", "picture_spectrum/2"]:
        assert [step for step, _ in logged[f"val/latent/{name}@{n}"]] == [2, 5], name
