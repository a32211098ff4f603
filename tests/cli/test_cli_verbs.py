"""The verbs on trained runs: repeatable from the run folder alone, with numbers that carry their protocol."""

from __future__ import annotations

import importlib.util
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from ldm_lightning.artifact import read_manifest
from ldm_lightning.experiment import build
from ldm_lightning.experiment.load import load_first_stage, load_latent_diffusion
from ldm_lightning.metrics.perceptual import ShiftTolerantLpips
from tests.conftest import TINY_FIRST_STAGE, TINY_LATENT_DIFFUSION, Result

Ldm = Callable[..., Result]


def drawn(folder: Path) -> list[np.ndarray]:
    return [np.asarray(Image.open(path)) for path in sorted(folder.glob("[0-9]*.png"))]


def test_a_sample_depends_on_seed_and_number_only(latent_diffusion_run: Path, tmp_path: Path, ldm: Ldm) -> None:
    moved = tmp_path / "moved"
    shutil.copytree(latent_diffusion_run, moved)  # without the first stage's own folder, without the data
    sheets = {}
    for name, extra in {
        "whole": ["n=5", "batch_size=100"],
        "split": ["n=5", "batch_size=2"],
        "fewer": ["n=3"],
        "other": ["n=5", "seed=1"],
        "euler": ["n=5", "steps=5"],
        "ddpm": ["n=5", "sampler=ddpm", "steps=4"],
        "ddpm_split": ["n=5", "sampler=ddpm", "steps=4", "batch_size=1"],
    }.items():
        result = ldm("sample", f"run={moved}", f"output={tmp_path / name}", *extra)
        assert result.code == 0, result.err
        assert f"pictures: {tmp_path / name}" in result.out
        sheets[name] = drawn(tmp_path / name)
    assert len(sheets["whole"]) == 5
    # Matrix products of other shapes round differently in the last bit, hence one grey level.
    for name, one in (("split", "whole"), ("fewer", "whole"), ("ddpm_split", "ddpm")):
        for ours, theirs in zip(sheets[name], sheets[one], strict=False):
            assert np.abs(ours.astype(int) - theirs).max() <= 1
    for name in ("other", "euler", "ddpm"):
        assert any(np.abs(a.astype(int) - b).max() > 1 for a, b in zip(sheets[name], sheets["whole"], strict=True))


def test_classes_by_name_and_number(latent_diffusion_run: Path, tmp_path: Path, ldm: Ldm) -> None:
    for name, classes in (("names", "[one]"), ("numbers", "0"), ("zero", "zero")):
        result = ldm("sample", f"run={latent_diffusion_run}", "n=2", f"classes={classes}", f"output={tmp_path / name}")
        assert result.code == 0, result.err
    names, numbers, zero = (drawn(tmp_path / name) for name in ("names", "numbers", "zero"))
    assert all((a == b).all() for a, b in zip(names, numbers, strict=True))
    assert any((a != b).any() for a, b in zip(names, zero, strict=True))


def test_guidance_is_chosen_when_sampling(
    latent_diffusion_run: Path, pictures: Path, first_stage_run: Path, tmp_path: Path, ldm: Ldm
) -> None:
    data = ["data=image_folder", f"data.root={pictures}", f"first_stage.run={first_stage_run}"]
    worse = ["denoiser.width=8", "trainer.max_steps=3", "objective.condition_dropout=0"]
    guided = ["guidance=autoguidance", f"guidance.run={latent_diffusion_run}"]  # in training: by another run, too
    done = ldm("train", *data, *TINY_LATENT_DIFFUSION, *worse, *guided, f"runs={tmp_path}", "name=worse")
    assert done.code == 0, done.err
    sheets = {}
    for name, extra in {
        "plain": ["scale=1"],
        "free": ["scale=4"],
        "null": ["guidance=negative", "scale=4"],
        "negative": ["guidance=negative", "guidance.condition.class=one", "scale=4"],
        "negative_number": ["guidance=negative", "guidance.condition.class=0", "guidance.scale=4"],
        "rescaled": ["guidance=rescaled", "scale=4"],
        "limited": ["guidance=limited", "scale=4", "guidance.interval.high=0.6", "steps=4"],
        "nowhere": ["guidance=limited", "scale=4", "guidance.interval.high=0.21"],
        "auto": ["guidance=autoguidance", f"guidance.run={tmp_path / 'worse'}", "scale=4"],
        "auto_plain": ["guidance=autoguidance", f"guidance.run={tmp_path / 'worse'}", "scale=1"],
    }.items():
        result = ldm("sample", f"run={latent_diffusion_run}", "n=4", f"output={tmp_path / name}", *extra)
        assert result.code == 0, result.err
        sheets[name] = np.stack(drawn(tmp_path / name))
    for one, other in (
        ("null", "free"),
        ("negative", "negative_number"),
        ("nowhere", "plain"),
        ("auto_plain", "plain"),
    ):
        assert (sheets[one] == sheets[other]).all(), (one, other)
    distinct = [sheets[name] for name in ("plain", "free", "negative", "rescaled", "limited", "auto")]
    for number, sheet in enumerate(distinct):
        assert all((sheet != other).any() for other in distinct[:number])


def test_evaluation_carries_its_protocol(latent_diffusion_run: Path, ldm: Ldm) -> None:
    for name, scale in (("a", "scale=1"), ("b", "scale=1"), ("c", "scale=3")):
        result = ldm("evaluate", f"run={latent_diffusion_run}", f"name={name}", "extractor=tiny", scale)
        assert result.code == 0, result.err
    a, b, c = (json.loads((latent_diffusion_run / "evaluation" / f"{name}.json").read_text()) for name in "abc")
    assert (a.pop("picture"), b.pop("picture"), c.pop("picture")) == ("a.png", "b.png", "c.png")
    assert a == b  # nothing is drawn from a hidden state
    assert a["figures"] != c["figures"]
    n = a["protocol"]["n"]
    assert set(a["figures"]) == {f"fd_tiny@{n}_too_few", f"fd_judge@{n}_too_few", f"class_accuracy@{n}"}
    for figure in a["figures"].values():
        assert np.isfinite(figure["value"])
        assert np.isfinite(figure["real"])
    assert "compare at equal n only" in a["protocol"]["too_few"]
    assert a["protocol"]["reference"] == "validation"
    assert a["protocol"]["sampler"] == "Euler, 2 evaluations"
    assert {"seed", "weights", "step", "data", "version", "torch", "machine", "guidance"} <= a["protocol"].keys()
    assert (latent_diffusion_run / "evaluation" / "a.png").is_file()


def test_reconstructions_are_measured_by_pixels_features_and_eye(first_stage_run: Path, ldm: Ldm) -> None:
    if importlib.util.find_spec("stlpips_pytorch") is None:
        pytest.skip("needs the extra offline")
    seen = ["perceptual=shift_tolerant", "perceptual.resize=64"]
    result = ldm("evaluate", f"run={first_stage_run}", "name=seen", "extractor=tiny", "batch_size=5", *seen)
    assert result.code == 0, result.err
    written = json.loads((first_stage_run / "evaluation" / "seen.json").read_text())
    n = written["protocol"]["n"]
    names = ("psnr", "ssim", "l1", "st_lpips_alex_64", "latent_bits_per_pixel")
    assert set(written["figures"]) == {f"{name}@{n}" for name in names} | {f"rfd_tiny@{n}_too_few"}
    data = load_first_stage(first_stage_run)
    x = build.data_module(data.config).pictures("validation").x
    expected = ShiftTolerantLpips(resize=64).distances(data.module.reconstruct(x), x).mean()
    assert written["figures"][f"st_lpips_alex_64@{n}"]["value"] == pytest.approx(float(expected), rel=1e-4)


def test_likelihood_is_a_figure_with_its_protocol(latent_diffusion_run: Path, ldm: Ldm) -> None:
    figures = {}
    for name, extra in {
        "ode": ["likelihood=ode"],
        "again": ["likelihood=ode", "scale=3"],  # of the model itself, whatever the guidance
        "probes": ["likelihood=ode", "likelihood.probes=8", "likelihood.tolerance=1e-4"],
        "bound": ["likelihood=bound", "likelihood.steps=300"],
    }.items():
        result = ldm("evaluate", f"run={latent_diffusion_run}", f"name={name}", "judge=false", *extra)
        assert result.code == 0, result.err
        written = json.loads((latent_diffusion_run / "evaluation" / f"{name}.json").read_text())
        ((label, figure),) = written["figures"].items()
        n = written["protocol"]["n"]
        assert label == (f"nll_bound_per_dim@{n}" if name == "bound" else f"nll_per_dim@{n}")
        figures[name] = figure["value"]
        for word in ("evaluations", "nats", "standardized", "standard error"):
            assert word in written["protocol"]["likelihood"]
        assert ("VariationalBound(" if name == "bound" else "ProbabilityFlow(") in written["protocol"]["likelihood"]
    assert figures["again"] == figures["ode"]
    assert figures["probes"] == pytest.approx(figures["ode"], abs=0.05)
    assert figures["ode"] < figures["bound"]
    assert 0.5 < figures["ode"] < 3  # a standard normal has 1.42


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_a_model_in_another_precision_samples(latent_diffusion_run: Path, dtype: torch.dtype) -> None:
    """Cast as a whole; its first stage, which it only holds, stays as it is."""
    module = load_latent_diffusion(latent_diffusion_run).module
    index, condition = torch.arange(4), {"class": torch.zeros(4, dtype=torch.int64)}
    single = module.sample(index, condition, seed=0)
    cast = module.to(dtype).sample(index, condition, seed=0)
    assert cast.dtype == single.dtype == torch.float32
    assert (cast - single).abs().mean() < (0.05 if dtype == torch.bfloat16 else 1e-4)


def test_a_first_stage_is_measured_by_its_reconstructions(first_stage_run: Path, ldm: Ldm) -> None:
    result = ldm("evaluate", f"run={first_stage_run}", "extractor=tiny")
    assert result.code == 0, result.err
    written = json.loads((first_stage_run / "evaluation" / "metrics.json").read_text())
    n = written["protocol"]["n"]
    assert set(written["figures"]) == {
        f"psnr@{n}",
        f"ssim@{n}",
        f"l1@{n}",
        f"rfd_tiny@{n}_too_few",
        f"latent_bits_per_pixel@{n}",
    }


def test_reconstruct_own_pictures(first_stage_run: Path, tmp_path: Path, ldm: Ldm) -> None:
    (tmp_path / "own").mkdir()
    for number in range(3):
        Image.new("RGB", (40, 30), (80 * number, 10, 200)).save(tmp_path / "own" / f"{number}.jpg")
    sheet = tmp_path / "out" / "sheet.png"
    own = f"pictures={tmp_path / 'own'}"
    result = ldm("reconstruct", f"run={first_stage_run}", own, f"output={tmp_path}/out", "columns=3")
    assert result.code == 0, result.err
    assert "psnr@3 " in result.out
    assert Image.open(sheet).size[0] >= 3 * 16


def test_the_run_folder(latent_diffusion_run: Path, first_stage_run: Path) -> None:
    for run in (latent_diffusion_run, first_stage_run):
        for name in (
            "config.yaml",
            "log.txt",
            "metrics.csv",
            "curves.png",
            "checkpoints/last.ckpt",
            "checkpoints/best.ckpt",
        ):
            assert (run / name).is_file(), name
        assert (run / "export" / "manifest.json").is_file()
        assert list((run / "samples").glob("*.png"))
    assert (latent_diffusion_run / "first_stage" / "manifest.json").read_bytes() == (
        first_stage_run / "export" / "manifest.json"
    ).read_bytes()


def test_a_sweep_makes_one_folder_a_job(pictures: Path, tmp_path: Path, ldm: Ldm) -> None:
    args = ["data=image_folder", f"data.root={pictures}", *TINY_FIRST_STAGE, f"runs={tmp_path}", "name=sweep"]
    done = ldm("train", "--multirun", *args, "optim.lr=0.001,0.002", "trainer.max_steps=2")
    assert done.code == 0, done.err
    assert not Path("multirun.yaml").exists()
    manifests = sorted(tmp_path.rglob("export/manifest.json"))
    assert len(manifests) == 2
    assert [path.parts[-3] for path in manifests] == ["optim.lr=0.001", "optim.lr=0.002"]
    assert [json.loads(path.read_text())["config"]["optim"]["lr"] for path in manifests] == [0.001, 0.002]


def test_wandb_gets_config_pictures_and_model(
    pictures: Path, first_stage_run: Path, tmp_path: Path, ldm: Ldm, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("WANDB_SILENT", "true")
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    args = ["data=image_folder", f"data.root={pictures}", *TINY_LATENT_DIFFUSION, f"first_stage.run={first_stage_run}"]
    done = ldm("train", *args, f"runs={tmp_path}", "name=watched", "logger=wandb")
    assert done.code == 0, done.err
    (offline,) = (tmp_path / "watched" / "wandb").glob("offline-run-*")
    (transactions,) = offline.glob("*.wandb")
    assert offline.name.endswith("-watched")
    assert list(offline.rglob("samples*.png"))
    content = transactions.read_bytes()
    for word in (b"val/loss", b"condition_dropout", b"latent_diffusion"):
        assert word in content


def test_a_run_outlives_what_it_was_made_from(
    pictures: Path, first_stage_run: Path, tmp_path: Path, ldm: Ldm, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first stage is deleted, the pictures and the run are moved, the command comes from another folder."""
    shutil.copytree(pictures, tmp_path / "pictures")
    shutil.copytree(first_stage_run, tmp_path / "first")
    monkeypatch.chdir(tmp_path)
    args = ["data=image_folder", *TINY_LATENT_DIFFUSION, f"runs={tmp_path}/runs", "name=run", "first_stage.run=first"]
    assert ldm("train", *args, "data.root=pictures", "trainer.max_steps=3").code == 0
    shutil.rmtree(tmp_path / "first")
    (tmp_path / "pictures").rename(tmp_path / "moved")
    resumed = ldm("train", *args, "data.root=moved")
    assert resumed.code == 0, resumed.err
    assert "resuming" in resumed.err
    (tmp_path / "runs" / "run").rename(tmp_path / "elsewhere")
    (tmp_path / "moved").rename(tmp_path / "again")
    monkeypatch.chdir("/")
    assert ldm("evaluate", f"run={tmp_path}/elsewhere", f"root={tmp_path}/again").code == 0
    assert ldm("sample", f"run={tmp_path}/elsewhere/export", "n=2", f"output={tmp_path}/out").code == 0


def test_a_model_can_be_sampled_while_it_trains(latent_diffusion_run: Path) -> None:
    """Every validation exports: the log names the last, the artifact the end."""
    manifest = json.loads((latent_diffusion_run / "export" / "manifest.json").read_text())
    assert manifest["step"] == 6
    assert (latent_diffusion_run / "export" / "first_stage" / "manifest.json").is_file()


def test_a_run_is_exported_with_the_first_stage_it_was_trained_on(
    pictures: Path, first_stage_run: Path, tmp_path: Path, ldm: Ldm
) -> None:
    data = ["data=image_folder", f"data.root={pictures}", f"runs={tmp_path}"]
    assert ldm("train", *data, *TINY_FIRST_STAGE, "seed=1", "name=other").code == 0
    second = ["train", *data, *TINY_LATENT_DIFFUSION, "name=second"]
    assert ldm(*second, f"first_stage.run={first_stage_run}").code == 0
    for folder in ("checkpoints", "export"):  # as a kill before the first checkpoint leaves it
        shutil.rmtree(tmp_path / "second" / folder)
    assert ldm(*second, f"first_stage.run={tmp_path / 'other'}").code == 0
    trained_on = read_manifest(tmp_path / "second")["config"]["derived"]["first_stage"]
    assert read_manifest(tmp_path / "second" / "export" / "first_stage")["sha256"] == trained_on
    assert trained_on == read_manifest(tmp_path / "other")["sha256"] != read_manifest(first_stage_run)["sha256"]


@pytest.mark.slow
def test_training_prints_only_what_is_about_the_run(pictures: Path, tmp_path: Path) -> None:
    args = ["data=image_folder", f"data.root={pictures}", *TINY_FIRST_STAGE, "trainer.max_steps=1", f"runs={tmp_path}"]
    command = [sys.executable, "-c", "from ldm_lightning.cli import main; main()", "train", *args, "name=quiet"]
    command = [text for text in command if "log_every_n_steps" not in text]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    lines = re.split(r"[\r\n]+", done.stderr.strip())
    ours = ("checking pictures", "FirstStage: ", "data: ", "run folder: ", "`Trainer.fit` stopped", "measuring latents")
    ours += ("model: ", "figures: ", "curves: ", "pictures during training: ")
    assert [line for line in lines if not line.startswith(ours)] == []
