"""The Python API: what `ldm` does on the command line, from a notebook."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

import ldm_lightning
from ldm_lightning import Samples, TrainedFirstStage, TrainedLatentDiffusion, UserError, compose, evaluate, fit, load
from ldm_lightning.artifact import read_artifact
from ldm_lightning.callbacks.picture_grid import to_uint8
from ldm_lightning.diffusion.guidance import ClassifierFree
from ldm_lightning.diffusion.sampler import Heun
from tests.conftest import TINY_FIRST_STAGE, run_ldm


@pytest.fixture(scope="module")
def second(latent_diffusion_run: Path) -> TrainedLatentDiffusion:
    trained = load(latent_diffusion_run, device="cpu")
    assert isinstance(trained, TrainedLatentDiffusion)
    return trained


@pytest.fixture(scope="module")
def first(first_stage_run: Path) -> TrainedFirstStage:
    trained = load(first_stage_run)
    assert isinstance(trained, TrainedFirstStage)
    return trained


def pixels(folder: Path, n: int) -> np.ndarray:
    return np.stack([np.asarray(Image.open(folder / f"{number:06d}.png").convert("RGB")) for number in range(n)])


@pytest.mark.parametrize(
    ("settings", "overrides"),
    [
        ({}, []),
        ({"seed": 3, "classes": ["one"], "batch_size": 2}, ["seed=3", "classes=one", "batch_size=2"]),
        ({"sampler": "heun", "steps": 3, "scale": 2.0}, ["sampler=heun", "steps=3", "scale=2"]),
        ({"sampler": Heun(2), "guidance": ClassifierFree(3.0)}, ["sampler=heun", "steps=2", "scale=3"]),
        ({"guidance": "rescaled", "scale": 2.0, "classes": 1}, ["guidance=rescaled", "scale=2", "classes=1"]),
    ],
)
def test_samples_are_those_of_the_command(second, latent_diffusion_run, tmp_path, settings, overrides):
    drawn = second.sample(5, **settings)
    done = run_ldm("sample", f"run={latent_diffusion_run}", "n=5", f"output={tmp_path / 'drawn'}", *overrides)
    assert done.code == 0, done.err
    assert np.array_equal(to_uint8(drawn.items), pixels(tmp_path / "drawn", 5))
    assert drawn.items.shape == (5, 3, 16, 16)
    torch.testing.assert_close(second.decode(drawn.latents), drawn.items, atol=1e-5, rtol=1e-5)
    assert len(drawn) == 5
    assert drawn.numbers.tolist() == [0, 1, 2, 3, 4]


def test_what_was_asked_stays_with_the_samples(second):
    drawn = second.sample(3, seed=4)
    assert drawn.conditions == {"class": ["one", "zero", "one"]}
    assert (drawn.seed, drawn.sampler) == (4, "Euler, 2 evaluations")


def test_other_guidance_leaves_the_model_as_it_was(second):
    before = second.sample(2).items
    assert not torch.equal(second.sample(2, scale=4.0).items, before)
    assert torch.equal(second.sample(2).items, before)


@pytest.mark.parametrize(
    ("settings", "fragment"),
    [
        ({"n": 0}, "n=0"),
        ({"classes": "two"}, "no class 'two'"),
        ({"captions": "a digit"}, "captions=a digit changes nothing"),
        ({"sampler": "huen"}, "did you mean 'heun'"),
        ({"guidance": ClassifierFree(1.0), "scale": 2.0}, "scale=2.0 belongs to the guidance"),
        ({"precision": "bf16"}, "bf16-mixed"),
        ({"sampler": "bernoulli_ancestral"}, "BernoulliPath"),
    ],
)
def test_mistakes_are_one_line(second, settings, fragment):
    with pytest.raises(UserError) as caught:
        second.sample(**{"n": 2} | settings)
    assert fragment in str(caught.value)
    assert "\n" not in str(caught.value)


def test_mixed_precision_draws_nearly_the_same(second):
    plain, mixed = second.sample(4).latents, second.sample(4, precision="bf16-mixed").latents
    assert not torch.equal(plain, mixed)
    torch.testing.assert_close(plain, mixed, atol=0.1, rtol=0.1)


def test_both_stages_encode_and_decode_alike(first, second):
    x = first.data().pictures("validation", 4).x
    z = first.encode(x)
    assert torch.equal(z, second.encode(x))
    assert z.shape == (4, *second.module.latent_shape)
    assert not torch.equal(z, first.encode(x, seed=0))  # a draw from the posterior
    assert torch.equal(first.encode(x, seed=0), first.encode(x, seed=0))
    assert torch.equal(first.decode(z), second.decode(z))


def test_reconstructions_are_those_of_training(first):
    x = first.data().pictures("validation", 4).x
    seen = first.reconstruct(x)
    torch.testing.assert_close(seen.items, first.module.reconstruct(x), atol=1e-5, rtol=1e-5)
    assert set(seen.figures()) == {"psnr", "ssim", "l1"}
    assert seen.grid(columns=2).width >= 640
    assert seen._repr_png_().startswith(b"\x89PNG")


def test_samples_are_saved_beside_what_is_there(second, tmp_path):
    drawn = second.sample(2)
    folder = drawn.save(tmp_path / "mine")
    assert np.array_equal(pixels(folder, 2), to_uint8(drawn.items))
    drawn.save(folder)  # our own may be replaced
    (tmp_path / "theirs").mkdir()
    (tmp_path / "theirs" / "000001.png").write_text("a picture of somebody else's")
    with pytest.raises(UserError, match="000001"):
        drawn.save(tmp_path / "theirs")
    assert [file.name for file in (tmp_path / "theirs").iterdir()] == ["000001.png"]


def test_training_from_python_is_training_by_the_command(pictures, first_stage_run, tmp_path):
    config = compose("train", ["data=image_folder", f"data.root={pictures}", *TINY_FIRST_STAGE])
    config.runs, config.name = str(tmp_path), "first"
    run = fit(config)
    ours, theirs = (read_artifact(folder, "first_stage").weights for folder in (run, first_stage_run))
    assert all(torch.equal(value, theirs[name]) for name, value in ours.items())
    written = (run / "export" / "manifest.json").stat().st_mtime_ns
    again = compose("train", ["data=image_folder", f"data.root={pictures}", *TINY_FIRST_STAGE])
    again.runs, again.name = str(tmp_path), "first"
    assert fit(again) == run  # finished, so nothing is done
    assert (run / "export" / "manifest.json").stat().st_mtime_ns == written
    assert isinstance(load(run), TrainedFirstStage)


@pytest.mark.parametrize(
    ("change", "fragment"),
    [("runs=", "a run lies below a folder"), ("trainer.max_step=3", "max_step"), ("first_stage.loss.kl=much", "kl")],
)
def test_training_from_python_refuses_mistakes(pictures, tmp_path, change, fragment):
    overrides = ["data=image_folder", f"data.root={pictures}", *TINY_FIRST_STAGE, f"runs={tmp_path}", "name=no"]
    with pytest.raises(Exception, match=fragment):
        fit(compose("train", [*overrides, change]))
    assert not list(tmp_path.iterdir())


def test_own_options_are_found(tmp_path):
    (tmp_path / "sampler").mkdir()
    (tmp_path / "sampler" / "mine.yaml").write_text("_target_: ldm_lightning.diffusion.sampler.Heun\nsteps: 7\n")
    config = compose("sample", ["sampler=mine", "run=any"], config_dir=tmp_path)
    assert config.sampler.steps == 7
    with pytest.raises(Exception, match="mine"):
        compose("sample", ["sampler=mine", "run=any"])


def test_a_run_is_measured_from_python(latent_diffusion_run, tmp_path):
    run = shutil.copytree(latent_diffusion_run, tmp_path / "second")
    measured = evaluate(compose("evaluate", [f"run={run}", "judge=false", "extractor=tiny", "n=6"]))
    assert json.loads(measured.page.read_text())["figures"] == measured.figures
    assert set(measured.figures) == {"fd_tiny@6_too_few"}


def test_there_must_be_a_run(tmp_path):
    with pytest.raises(UserError, match="does not exist"):
        load(tmp_path / "none")


# --- runs of the earlier layout --------------------------------------------------------------------------------------

OLD, NEW = "ldm_lightning.cli.guidance.autoguidance", "ldm_lightning.experiment.guidance.autoguidance"


@pytest.fixture
def old_run(pictures: Path, latent_diffusion_run: Path, first_stage_run: Path, tmp_path: Path) -> Path:
    """A run that is guided by another model, with the names of the time when `cli` held everything."""
    run = shutil.copytree(latent_diffusion_run, tmp_path / "old")
    node = {"_target_": OLD, "run": str(latent_diffusion_run), "scale": 1.5}
    config = yaml.safe_load((run / "config.yaml").read_text())
    manifest = json.loads((run / "export" / "manifest.json").read_text())
    config["guidance"] = manifest["config"]["guidance"] = node
    (run / "config.yaml").write_text(yaml.safe_dump(config))
    (run / "export" / "manifest.json").write_text(json.dumps(manifest))
    return run


def test_names_of_the_earlier_layout_are_known(old_run, latent_diffusion_run):
    trained = load(old_run)
    assert isinstance(trained, TrainedLatentDiffusion)
    assert trained.config.guidance._target_ == NEW
    now = load(latent_diffusion_run)
    assert isinstance(now, TrainedLatentDiffusion)
    assert torch.equal(trained.sample(2).latents, now.sample(2, guidance=trained.module.guidance).latents)


def test_names_that_are_not_in_the_table_stay_refused(old_run):
    file = old_run / "export" / "manifest.json"
    file.write_text(file.read_text().replace(OLD, "ldm_lightning.cli.guidance.Path"))
    with pytest.raises(UserError, match=r"cli\.guidance\.Path"):
        load(old_run)


# --- the package -----------------------------------------------------------------------------------------------------


def test_the_page_about_python_runs(pictures, first_stage_run, latent_diffusion_run, tmp_path, monkeypatch):
    text = (Path(__file__).parents[2] / "docs" / "python.md").read_text()
    code = "\n".join(re.findall(r"^```python\n(.*?)^```$", text, re.MULTILINE | re.DOTALL))
    for run, tiny in (("first_stage", first_stage_run), ("latent_diffusion", latent_diffusion_run)):
        code = code.replace(f"runs/mnist5k-{run}", str(shutil.copytree(tiny, tmp_path / run)))
    small = ["data=image_folder", f"data.root={pictures}", *TINY_FIRST_STAGE]
    code = code.replace('"experiment=mnist5k_first_stage"', repr(small)[1:-1]).replace("= 500", "= 2")
    code = code.replace('classes="1"', 'classes="one"')  # the names of these pictures
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LDM_RUNS", str(tmp_path))
    exec(compile(code, "docs/python.md", "exec"), {})
    assert (tmp_path / "zeros_and_ones.png").stat().st_size > 1000
    assert (tmp_path / "drawn" / "000007.png").is_file()
    assert (tmp_path / "mine" / "evaluation" / "metrics.json").is_file()


def test_importing_the_package_imports_no_torch():
    code = "import sys, ldm_lightning; sys.exit('torch' in sys.modules or 'hydra' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_every_public_name_is_there():
    assert all(getattr(ldm_lightning, name) is not None for name in ldm_lightning.__all__)
    assert Samples is ldm_lightning.Samples
    with pytest.raises(AttributeError, match="nothing"):
        _ = ldm_lightning.nothing
