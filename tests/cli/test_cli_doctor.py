"""``ldm doctor`` on really trained runs: what is broken on purpose is named, and what it advises mends it."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf
from torch import Tensor

from ldm_lightning.artifact import read_manifest
from ldm_lightning.experiment.build import data_module
from ldm_lightning.experiment.run_folder import lock
from ldm_lightning.loggers.csv_log import read_metrics
from ldm_lightning.training.latent_diffusion import LatentDiffusion
from tests.conftest import TINY_BITS, TINY_FIRST_STAGE, TINY_LATENT_DIFFUSION, Result

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
    """What is wrong beside a validation set that is too small, as it is in all runs on 80 pictures."""
    return {subject for subject, verdict in found.items() if verdict["state"] == "wrong"} - {"validation set too small"}


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
    assert ": 1 finding\n\n1. VALIDATION SET TOO SMALL" in text
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


@pytest.mark.slow
@pytest.mark.parametrize("bits", [False, True], ids=["numbers", "bits"])
def test_speckle_is_told_from_data(bits: bool, tmp_path: Path, ldm: Ldm, monkeypatch: pytest.MonkeyPatch) -> None:
    """Six tiny steps teach nothing; a model that draws latents of other pictures of the same classes is healthy."""
    digits = ["data=mnist5k", "data.validation=0.1", f"runs={tmp_path}"]
    first = ["optim.lr=0.005", "learning_rate.warmup=5", *(["first_stage=bernoulli_f4_tiny"] if bits else [])]
    second = [*TINY_LATENT_DIFFUSION, "optim.lr=1e-6", "sampler.steps=20", *(TINY_BITS if bits else [])]
    for args in (
        [*TINY_FIRST_STAGE, *first, *digits, "trainer.max_steps=60", "trainer.val_check_interval=60", "name=first"],
        [*second, *digits, f"first_stage.run={tmp_path}/first", "name=second"],
    ):
        done = ldm("train", *args)
        assert done.code == 0, done.err
    text, found = verdicts(tmp_path / "second", ldm)
    assert "SAMPLES ARE SPECKLE" in text
    assert found["samples are speckle"]["change"][0].startswith("trainer.max_steps=24")
    assert found["size of the validation set"]["state"] == "fine"
    others = data_module(OmegaConf.create(read_manifest(tmp_path / "second")["config"])).pictures("train")

    def draw(
        module: LatentDiffusion, index: Tensor, condition: Mapping[str, Tensor], *_: object, **__: object
    ) -> Tensor:
        of_class = [others.x[others.condition["class"] == label] for label in condition["class"].tolist()]
        return module.first_stage.encode(torch.stack([x[i % len(x)] for i, x in enumerate(of_class)]))

    monkeypatch.setattr(LatentDiffusion, "sample_latents", draw)
    # Bits of so young a first stage have little structure to compare with.
    healthy = ("fine", "unknown") if bits else ("fine",)
    assert verdicts(tmp_path / "second", ldm)[1]["structure of the samples"]["state"] in healthy


def test_few_validation_pictures_are_named_with_how_many_would_do(first_stage_run: Path, ldm: Ldm) -> None:
    _, found = verdicts(first_stage_run, ldm)
    assert "the mean over 13 items" in found["validation set too small"]["seen"]
    assert "about 50 would" in found["validation set too small"]["seen"]


def test_a_run_whose_data_are_gone_is_still_read(latent_diffusion_run: Path, tmp_path: Path, ldm: Ldm) -> None:
    run = tmp_path / "moved"
    shutil.copytree(latent_diffusion_run, run)
    for file in (run / "config.yaml", run / "export" / "manifest.json"):
        file.write_text(re.sub(r"[^\s\"]*/pictures0", "/nowhere", file.read_text()))
    _, found = verdicts(run, ldm)
    assert found["structure of the samples"]["state"] == "unknown"
    assert "/nowhere" in found["structure of the samples"]["seen"]
    assert found["finished"]["state"] == "fine"


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
