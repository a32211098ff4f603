"""``ldm finish``: the model of a checkpoint, as the end of training would have written it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from ldm_lightning.artifact import read_artifact
from ldm_lightning.experiment.run_folder import lock
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
    assert f"model of step {step}, val/loss {loss:.4g} (best.ckpt): {run / 'best' / 'export'}" in done.out
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
    refused(ldm("reconstruct", f"run={run}"), f"ldm finish run={run} checkpoint=last")
    done = ldm("finish", f"run={run}", "checkpoint=last")
    assert done.code == 0, done.err
    ours, theirs = read_artifact(run), read_artifact(overfitted)
    assert all(torch.equal(value, theirs.weights[name]) for name, value in ours.weights.items())
    assert ours.manifest["statistics"] == theirs.manifest["statistics"]
    assert ours.manifest["step"] == theirs.manifest["step"]
    both = ours.manifest["metrics"].keys() & theirs.manifest["metrics"].keys()
    assert both >= {"val/loss", "train/loss"}
    assert {name: ours.manifest["metrics"][name] for name in both} == pytest.approx(
        {name: theirs.manifest["metrics"][name] for name in both}, rel=1e-6
    )


def test_a_second_stage_needs_nothing_but_its_folder(
    latent_diffusion_run: Path, overfitted: Path, tmp_path: Path, ldm: Ldm
) -> None:
    """Neither pictures nor the runs of its first stage and of its guidance; a wrong first stage is replaced."""
    run = tmp_path / "second"
    shutil.copytree(latent_diffusion_run, run)
    shutil.rmtree(run / "export")
    config = run / "config.yaml"
    config.write_text(config.read_text().replace(str(latent_diffusion_run.parent), str(tmp_path / "gone")))
    shutil.copytree(overfitted / "export", run / "best" / "export" / "first_stage")
    for which, model in (("best", run / "best"), ("last", run)):
        assert ldm("finish", f"run={run}", f"checkpoint={which}").code == 0
        done = ldm("sample", f"run={model}", "n=2", "steps=2", "seed=5")
        assert done.code == 0, done.err
    assert (
        ldm("sample", f"run={latent_diffusion_run}", "n=2", "steps=2", "seed=5", f"output={tmp_path}/theirs").code == 0
    )
    theirs = sorted((tmp_path / "theirs").glob("[0-9]*.png"))
    assert theirs
    for picture in theirs:
        assert (run / "samples" / "seed5" / picture.name).read_bytes() == picture.read_bytes()
    shutil.rmtree(run / "export" / "first_stage")
    shutil.copytree(overfitted / "export", run / "export" / "first_stage")
    refused(ldm("sample", f"run={run}", "n=2"), "is not the first stage that")


def test_what_lies_beside_a_model_is_its_own(overfitted: Path, tmp_path: Path, ldm: Ldm) -> None:
    """Latents and figures of RUN/best are not taken for those of RUN, and do not travel with the model."""
    run = tmp_path / "run"
    shutil.copytree(overfitted, run)
    assert ldm("finish", f"run={run}").code == 0
    for verb in ("encode", "reconstruct"):
        done = ldm(verb, f"run={run / 'best'}")
        assert done.code == 0, done.err
    assert (run / "best" / "latents").is_dir()
    assert not (run / "latents").exists()
    assert {file.name for file in (run / "best" / "latents" / "first_stage").iterdir()} == {
        file.name for file in (run / "best" / "export").iterdir()
    }


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
        refused(ldm("finish", f"run={run}", "checkpoint=last"), "another command is at work")
    best = run / "checkpoints" / "best.ckpt"
    content = bytearray(best.read_bytes())
    content[len(content) // 2] ^= 1
    best.write_bytes(content)
    refused(ldm("finish", f"run={run}"), "no whole best checkpoint", "best.ckpt is damaged", "checkpoint=last")
    best.unlink()
    refused(ldm("finish", f"run={run}"), "no best checkpoint", "after a validation")
    assert not (run / "best" / "export").exists()
    shutil.copy(overfitted / "checkpoints" / "best.ckpt", run / "checkpoints" / "previous-last.ckpt")
    (run / "checkpoints" / "last.ckpt").unlink()
    refused(ldm("finish", f"run={run}", "checkpoint=last"), "later than step", "previous-last.ckpt")
    assert contents(run / "export") == contents(overfitted / "export")
    shutil.rmtree(run / "checkpoints")
    refused(ldm("finish", f"run={run}"), "no checkpoints")


def json_root(run: Path) -> Path:
    manifest = json.loads((run / "export" / "manifest.json").read_text())
    return Path(manifest["config"]["data"]["root"])
