"""``ldm finish``: the model of a checkpoint, as the end of training would have written it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from ldm_lightning.artifact import read_artifact
from ldm_lightning.cli.run_folder import lock
from tests.conftest import TINY_FIRST_STAGE, Result, refused

Ldm = Callable[..., Result]


@pytest.fixture(scope="module")
def overfitted(pictures: Path, tmp_path_factory: pytest.TempPathFactory, ldm: Ldm) -> Path:
    """A first stage whose validations become worse, since its learning rate is far too high after a while."""
    runs = tmp_path_factory.mktemp("overfitted")
    data = ["data=image_folder", f"data.root={pictures}", *TINY_FIRST_STAGE, "callbacks=first_stage_ema"]
    steps = ["trainer.max_steps=12", "trainer.val_check_interval=3", "optim.lr=0.3", "callbacks.ema.decay=0.5"]
    done = ldm("train", *data, *steps, "learning_rate.warmup=12", f"runs={runs}", "name=run")
    assert done.code == 0, done.err
    return runs / "run"


def contents(folder: Path) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


def test_the_best_validation_is_a_model_of_its_own(overfitted: Path, tmp_path: Path, ldm: Ldm) -> None:
    run = tmp_path / "moved"
    shutil.copytree(overfitted, run)
    before = contents(run)
    done = ldm("finish", f"run={run}")
    assert done.code == 0, done.err
    after = contents(run)
    assert {name: after[name] for name in before} == before

    best = torch.load(run / "checkpoints" / "best.ckpt", weights_only=True)
    artifact, end = read_artifact(run / "best", "first_stage"), read_artifact(run, "first_stage")
    step, loss = artifact.manifest["step"], artifact.manifest["metrics"]["val/loss"]
    assert step == best["global_step"] < end.manifest["step"]
    assert loss == pytest.approx(best["callbacks"]["Checkpoints"]["best"], rel=1e-6)
    assert loss < end.manifest["metrics"]["val/loss"]
    assert f"model of step {step}, val/loss {loss:.4g}: {run / 'best'}" in done.out
    average = best["callbacks"]["Ema"]["average"]
    assert all(torch.equal(artifact.weights[name], value) for name, value in average.items())
    assert artifact.manifest["config"] == end.manifest["config"]
    assert artifact.manifest["statistics"] != end.manifest["statistics"]

    measured = ldm("evaluate", f"run={run / 'best'}", "reference=validation")
    assert measured.code == 0, measured.err
    assert ldm("evaluate", f"run={run}", "reference=validation").code == 0
    figures = [json.loads((folder / "evaluation" / "metrics.json").read_text()) for folder in (run / "best", run)]
    psnr = [f["figures"]["psnr@13"]["value"] for f in figures]
    assert psnr[0] > psnr[1]


def test_the_last_checkpoint_is_the_end_of_training(overfitted: Path, tmp_path: Path, ldm: Ldm) -> None:
    run = tmp_path / "run"
    shutil.copytree(overfitted, run)
    shutil.rmtree(run / "export")
    refused(ldm("reconstruct", f"run={run}"), "ldm finish checkpoint=last")
    done = ldm("finish", f"run={run}", "checkpoint=last")
    assert done.code == 0, done.err
    ours, theirs = read_artifact(run), read_artifact(overfitted)
    assert all(torch.equal(value, theirs.weights[name]) for name, value in ours.weights.items())
    assert ours.manifest["statistics"] == theirs.manifest["statistics"]
    assert ours.manifest["step"] == theirs.manifest["step"]
    validated = {name: value for name, value in theirs.manifest["metrics"].items() if name.startswith("val/")}
    assert ours.manifest["metrics"] == pytest.approx(validated, rel=1e-6)


def test_a_second_stage_needs_neither_pictures_nor_its_first_stages_run(
    latent_diffusion_run: Path, tmp_path: Path, ldm: Ldm
) -> None:
    run = tmp_path / "second"
    shutil.copytree(latent_diffusion_run, run)
    config = run / "config.yaml"
    text = config.read_text().replace(str(latent_diffusion_run.parent), str(tmp_path / "gone"))
    config.write_text(text)
    assert ldm("finish", f"run={run}").code == 0
    done = ldm("sample", f"run={run / 'best'}", "n=2", "steps=2")
    assert done.code == 0, done.err
    best, end = (read_artifact(folder, "latent_diffusion") for folder in (run / "best", run))
    same = all(torch.equal(value, end.weights[name]) for name, value in best.weights.items())
    assert same == (best.manifest["step"] == end.manifest["step"])


def test_mistakes_end_in_one_line_and_lose_nothing(overfitted: Path, tmp_path: Path, ldm: Ldm) -> None:
    run = tmp_path / "run"
    shutil.copytree(overfitted, run)
    refused(ldm("finish", f"run={run}", "checkpoint=bets"), "bets", "did you mean 'best'")
    refused(ldm("finish", f"run={tmp_path / 'nowhere'}"), "does not exist")
    refused(ldm("finish", f"run={run / 'export'}"), "config.yaml is missing")
    others = tmp_path / "others"
    shutil.copytree(json_root(run), others)
    next(others.rglob("*.png")).unlink()
    refused(ldm("finish", f"run={run}", f"root={others}"), "not those that this run was trained on")
    with lock(run):
        refused(ldm("finish", f"run={run}"), "another command is at work")
    best = run / "checkpoints" / "best.ckpt"
    content = bytearray(best.read_bytes())
    content[len(content) // 2] ^= 1
    best.write_bytes(content)
    refused(ldm("finish", f"run={run}"), "best.ckpt is damaged", "checkpoint=last")
    best.unlink()
    refused(ldm("finish", f"run={run}"), "no best checkpoint", "after a validation")
    assert not (run / "best").exists()


def json_root(run: Path) -> Path:
    manifest = json.loads((run / "export" / "manifest.json").read_text())
    return Path(manifest["config"]["data"]["root"])
