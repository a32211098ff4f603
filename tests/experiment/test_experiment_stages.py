"""A stage of a user's own, added beside the package: every verb that serves stages serves it."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from ldm_lightning import UserError, load
from ldm_lightning.experiment.stages import STAGES, stage_of
from tests.conftest import TINY_FIRST_STAGE, Result, refused, run_ldm

YAML = """# @package _global_
defaults:
  - /callbacks: mean_picture
stage: own_stage.MEAN_PICTURE
first_stage: {}
rate: 0.1
"""
CALLBACKS = """checkpoints:
  _target_: ldm_lightning.callbacks.checkpoints.Checkpoints
  folder: ${run_dir}/checkpoints
"""


@pytest.fixture(scope="module")
def conf(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder of the user's with yaml and the module beside it, which is found as `PYTHONPATH` finds it."""
    root = tmp_path_factory.mktemp("own")
    shutil.copy(Path(__file__).with_name("own_stage.py"), root)
    for name, text in (("stage/mean_picture.yaml", YAML), ("callbacks/mean_picture.yaml", CALLBACKS)):
        (root / name).parent.mkdir(exist_ok=True)
        (root / name).write_text(text)
    sys.path.append(str(root))
    yield root
    sys.path.remove(str(root))
    sys.modules.pop("own_stage", None)


def train(conf: Path, pictures: Path, *args: str) -> Result:
    small = [text for text in TINY_FIRST_STAGE if text.startswith(("data.", "trainer."))]
    common = ["--config-dir", str(conf), "stage=mean_picture", "data=image_folder", f"data.root={pictures}"]
    return run_ldm("train", *common, *small, "trainer.max_steps=40", "trainer.val_check_interval=20", *args)


@pytest.fixture(scope="module")
def run(conf: Path, pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    runs = tmp_path_factory.mktemp("runs")
    done = train(conf, pictures, f"runs={runs}", "name=mean")
    assert done.code == 0, done.err
    assert "MeanPicture: 768 parameters; multiply-adds: 768 a picture" in done.err
    return runs / "mean"


def test_it_learns_and_is_exported(run, conf, pictures):
    mean = load(run, trust="own_stage")
    x = load_data(run)
    assert (mean - x.mean(0)).abs().mean() < 0.1
    manifest = json.loads((run / "export" / "manifest.json").read_text())
    assert (manifest["kind"], manifest["step"]) == ("own_stage.MEAN_PICTURE", 40)


def load_data(run: Path) -> torch.Tensor:
    from omegaconf import OmegaConf

    from ldm_lightning.experiment.build import data_module

    return data_module(OmegaConf.load(run / "config.yaml")).pictures("train").x


def test_the_same_command_resumes_or_finds_it_finished(run, conf, pictures):
    again = train(conf, pictures, f"runs={run.parent}", "name=mean")
    assert again.code == 0, again.err
    assert "is finished (step 40)" in again.err
    on = train(conf, pictures, f"runs={run.parent}", "name=mean", "trainer.max_steps=50")
    assert "resuming from last.ckpt" in on.err


def test_verbs_serve_it(run):
    measured = run_ldm("evaluate", f"run={run}", "trust=own_stage")
    assert measured.code == 0, measured.err
    figures = json.loads((run / "evaluation" / "metrics.json").read_text())["figures"]
    assert list(figures) == ["mse@13"]
    for command in (["finish", "checkpoint=best"], ["doctor"]):
        done = run_ldm(*command, f"run={run}", "trust=own_stage")
        assert done.code == 0, done.err
    assert load(run / "best", trust="own_stage").shape == (3, 16, 16)


@pytest.mark.parametrize("verb", ["evaluate", "finish", "doctor"])
def test_nothing_of_it_is_called_without_trust(run, verb):
    refused(run_ldm(verb, f"run={run}"), "own_stage", "trust=")


@pytest.mark.parametrize("verb", ["sample", "reconstruct", "encode"])
def test_verbs_that_need_another_stage_say_so(run, verb):
    refused(run_ldm(verb, f"run={run}", "trust=own_stage"), "own_stage.MEAN_PICTURE model, but a")


def test_stages_are_found_by_name(conf):
    assert stage_of("first_stage") is STAGES["first_stage"]
    assert stage_of("own_stage.MEAN_PICTURE").home == "own_stage"


@pytest.mark.parametrize("name", ["first_stag", "own_stage.nothing", "pathlib.Path", "own_stage.MeanPicture"])
def test_names_of_no_stage_are_refused(conf, name):
    with pytest.raises(UserError, match=r"stage|imported"):
        stage_of(name)
