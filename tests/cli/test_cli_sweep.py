"""Sweeps: one job's failure is its own, and every job has a folder of a name that fits."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from hydra.core.override_parser.overrides_parser import OverridesParser

from ldm_lightning.artifact import read_artifact
from ldm_lightning.cli.arguments import split_arguments
from ldm_lightning.cli.sweep import folder_name
from tests.conftest import TINY_FIRST_STAGE, Result, refused

Ldm = Callable[..., Result]


@pytest.fixture
def sweep(pictures: Path, tmp_path: Path) -> list[str]:
    data = ["data=image_folder", f"data.root={pictures}", *TINY_FIRST_STAGE, "trainer.max_steps=1"]
    return ["train", "--multirun", *data, f"runs={tmp_path}", "name=sweep"]


def _finished(runs: Path) -> list[str]:
    return sorted(file.parts[-3] for file in runs.rglob("export/manifest.json"))


def test_the_jobs_beside_a_mistake_run(sweep: list[str], tmp_path: Path, ldm: Ldm) -> None:
    done = ldm(*sweep, "data.batch_size=8,40000,16")
    assert done.code == 2
    assert _finished(tmp_path) == ["data.batch_size=16", "data.batch_size=8"]
    *_, title, cause = done.err.splitlines()
    assert title.startswith("ldm train: 1 of 3 jobs failed")
    assert cause.startswith("  data.batch_size=40000: ")
    assert "Traceback" not in done.err


def test_the_jobs_beside_a_defect_run(
    sweep: list[str], tmp_path: Path, ldm: Ldm, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "broken_part.py").write_text(
        "import torch\n"
        "class Adam(torch.optim.Adam):\n"
        "    def step(self, *args, **kwargs):\n"
        "        raise ZeroDivisionError('one by none')\n"
    )
    monkeypatch.chdir(tmp_path)
    done = ldm(*sweep, "optim._target_=broken_part.Adam,torch.optim.Adam")
    assert done.code == 1
    assert _finished(tmp_path) == ["optim._target_=torch.optim.Adam"]
    assert "Traceback" in done.err
    assert done.err.splitlines()[-1].startswith("  optim._target_=broken_part.Adam: ZeroDivisionError: one by none")


_LAUNCHER = """
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context

import cloudpickle
from hydra._internal.core_plugins.basic_launcher import BasicLauncher
from hydra.core.config_store import ConfigStore
from hydra.core.singleton import Singleton


def launch(pickled):
    state, launcher, overrides, number = cloudpickle.loads(pickled)
    Singleton.set_state(state)
    return cloudpickle.dumps(BasicLauncher.launch(launcher, [overrides], number))


class Elsewhere(BasicLauncher):
    def launch(self, job_overrides, initial_job_idx):
        state = Singleton.get_state()
        jobs = [cloudpickle.dumps((state, self, job, k)) for k, job in enumerate(job_overrides, initial_job_idx)]
        with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
            return [done for pickled in pool.map(launch, jobs) for done in cloudpickle.loads(pickled)]


@dataclass
class Config:
    _target_: str = "hydra_plugins.elsewhere.Elsewhere"


ConfigStore.instance().store(group="hydra/launcher", name="elsewhere", node=Config)
"""


def test_jobs_in_other_processes_tell_how_they_ended(tmp_path: Path) -> None:
    """By a launcher that pickles the job and starts it elsewhere, as those of joblib and Slurm do."""
    pytest.importorskip("cloudpickle")
    plugin = tmp_path / "hydra_plugins" / "elsewhere.py"
    plugin.parent.mkdir(parents=True)
    plugin.write_text(_LAUNCHER)
    runs = tmp_path / "runs"
    done = subprocess.run(
        [sys.executable, "-m", "ldm_lightning", "doctor", "--multirun", "hydra/launcher=elsewhere", "run=a,b"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), *sys.path]), "LDM_RUNS": str(runs)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2, done.stderr
    *_, title, first, second = done.stderr.splitlines()
    assert title.startswith("ldm doctor: 2 of 2 jobs failed")
    assert (first[:17], second[:17]) == ("  run=a: a does n", "  run=b: b does n")
    assert [path.name for path in runs.iterdir()] == ["multirun.yaml"]


def test_a_mistake_of_all_jobs_is_said_once(sweep: list[str], ldm: Ldm) -> None:
    refused(ldm(*sweep, "optim.lr=0.1,0.2", "data.root=/nowhere"), "data.root=/nowhere")


def test_a_signal_ends_the_sweep_and_the_command_resumes(
    sweep: list[str], tmp_path: Path, ldm: Ldm, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "stopping.py").write_text(
        "import os, signal, torch\n"
        "class Adam(torch.optim.Adam):\n"
        "    def step(self, *args, **kwargs):\n"
        "        if os.environ.pop('STOP_NOW', None):\n"
        "            os.kill(os.getpid(), signal.SIGTERM)\n"
        "        return super().step(*args, **kwargs)\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("STOP_NOW", "1")
    command = [*sweep, "trainer.max_steps=3", "optim._target_=stopping.Adam", "seed=1,2"]
    assert ldm(*command).code == 128 + signal.SIGTERM
    assert "STOP_NOW" not in os.environ
    assert _finished(tmp_path) == []
    assert not (tmp_path / "sweep" / "seed=2").exists()
    assert ldm(*command).code == 0
    assert _finished(tmp_path) == ["seed=1", "seed=2"]


def test_names_of_jobs_fit_and_differ() -> None:
    long = ["optim.lr=0.1", *(f"first_stage.weights.part{number}=0.25" for number in range(40))]
    names = [
        folder_name(overrides)
        for overrides in (
            ["data.root=猫"],
            ["data.root=犬"],
            ["data.root=a/b"],
            ["data.root=a_b"],
            ["x=[1,2]"],
            long,
            [*long, "seed=1"],
            ["seed=1", *long],
        )
    ]
    assert len(set(names)) == len(names)
    assert all(len(os.fsencode(name)) <= 255 and name.isascii() and "/" not in name for name in names)
    assert names[3] == "data.root=a_b"
    assert names[5].startswith("optim.lr=0.1,first_stage.weights.part0=0.25")


def test_a_table_says_what_a_short_name_stands_for(sweep: list[str], pictures: Path, tmp_path: Path, ldm: Ldm) -> None:
    roots = [tmp_path / "猫", tmp_path / "犬"]
    for root in roots:
        shutil.copytree(pictures, root)
    command = [text for text in sweep if not text.startswith("data.root")]
    command.append(f'data.root="{roots[0]}","{roots[1]}"')
    for _ in range(2):  # the second time all is there
        done = ldm(*command)
        assert done.code == 0, done.err
    lines = (tmp_path / "multirun-names.yaml").read_text(encoding="utf-8")
    table = yaml.safe_load(lines)
    assert len(lines.splitlines()) == len(table) == 2
    for (name, (override,)), root in zip(table.items(), roots, strict=True):
        assert str(root) in override
        assert read_artifact(tmp_path / name).manifest["config"]["data"]["root"] == str(root)


@pytest.mark.parametrize(
    ("choice", "package"),
    [
        ("hydra/launcher=joblib", "hydra-joblib-launcher"),
        ("hydra/launcher=submitit_slurm", "hydra-submitit-launcher"),
        ("hydra/sweeper=optuna", "hydra-optuna-sweeper"),
    ],
)
def test_a_missing_plugin_is_named(choice: str, package: str, ldm: Ldm) -> None:
    refused(ldm("train", "--multirun", choice, "seed=1,2"), choice, f"pip install {package}")


def test_dashes_before_a_key_are_read_as_a_wandb_agent_writes_them() -> None:
    given = ["--name=x", "--optim.lr=1", "--experiment=mnist5k_first_stage", "--run=runs/a", "--cfg=job", "--multirun"]
    overrides = ["name=x", "optim.lr=1", "experiment=mnist5k_first_stage", "run=runs/a"]
    assert split_arguments(given) == (overrides, ["--cfg=job", "--multirun"])


def test_settings_are_read_as_a_wandb_agent_writes_them(ldm: Ldm, monkeypatch: pytest.MonkeyPatch) -> None:
    """By wandb's own code, with dashes (its default) and without: the values arrive as the sweep's yaml has them."""
    monkeypatch.setenv("WANDB_RUN_ID", "trial")
    from wandb.sdk.launch.sweeps.utils import create_sweep_command_args

    chosen = {
        "name": "${oc.env:WANDB_RUN_ID}",
        "experiment": "mnist5k_first_stage",
        "optim.lr": 1e-05,
        "optim.betas": [0.5, 0.9],
        "trainer": {"max_steps": 5, "max_time": "00:01:00:00", "enable_progress_bar": False},
        "data": {"transform": {"flip": True, "crop": "random"}},
        "trainer.limit_val_batches": None,
    }
    written = create_sweep_command_args({"args": {key: {"value": value} for key, value in chosen.items()}})
    del chosen["trainer.limit_val_batches"]
    for style in ("args", "args_no_hyphens"):
        given = written[style] if style == "args" else [text for text in written[style] if not text.endswith("=None")]
        shown = ldm("train", "--cfg", "job", "--resolve", *given)
        assert shown.code == 0, shown.err
        config = yaml.safe_load(shown.out)
        assert (config["name"], config["trainer"]["limit_val_batches"]) == ("trial", None)
        assert float(config["optim"]["lr"]) == 1e-05
        assert config["optim"]["betas"] == [0.5, 0.9]
        assert {key: config["trainer"][key] for key in chosen["trainer"]} == chosen["trainer"]
        assert {key: config["data"]["transform"][key] for key in ("flip", "crop")} == {"flip": True, "crop": "random"}


@pytest.mark.parametrize("text", ["plain", "a,b", 'a "b"', "back\\", '\\"', "", "it's", "größe (2)=1", "a\\b"])
def test_any_text_in_a_dictionary_arrives(text: str) -> None:
    (override,), _ = split_arguments([f"--a={ {'b': text} }"])
    assert OverridesParser.create().parse_override(override).value() == text
