"""What verbs write: inside the folder named, never over what is not ours, and never silently over what is."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from ldm_lightning.experiment.run_folder import lock
from ldm_lightning.output import RECORD
from ldm_lightning.training.latent_diffusion import LatentDiffusion
from tests.conftest import TINY_FIRST_STAGE, Result, refused

Ldm = Callable[..., Result]


def contents(folder: Path) -> dict[str, bytes]:
    """Of all files but locks."""
    files = (path for path in folder.rglob("*") if path.is_file() and path.name != ".lock")
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def kept(folder: Path) -> dict[str, tuple[bytes, int]]:
    """The pictures of a drawing, and when they were written."""
    return {path.name: (path.read_bytes(), path.stat().st_mtime_ns) for path in folder.glob("[0-9]*.png")}


@pytest.fixture
def run(latent_diffusion_run: Path, tmp_path: Path) -> Path:
    """A second stage of one's own, without what other tests have drawn from it and measured."""
    others = shutil.ignore_patterns("evaluation", "seed*", "outputs*")
    return shutil.copytree(latent_diffusion_run, tmp_path / "run", ignore=others)


def draw(ldm: Ldm, run: Path, *args: str) -> Result:
    done = ldm("sample", f"run={run}", "batch_size=8", *args)
    assert done.code == 0, done.err
    return done


# --- what is not ours ------------------------------------------------------------------------------------------------


def test_the_users_own_pictures_stay(run: Path, tmp_path: Path, ldm: Ldm, monkeypatch: pytest.MonkeyPatch) -> None:
    home = tmp_path / "home"
    (home / "mine").mkdir(parents=True)
    for name in ("mine/001.png", "mine/2024-holiday.png", "mine/grid.txt", "mine.png", "home.png", "1.png"):
        (home / name).write_bytes(b"the user's " + name.encode())
    before = contents(home)
    monkeypatch.chdir(home)
    made = {"000000.png", "000001.png", "grid.png", RECORD}
    draw(ldm, run, "n=2", "output=mine")
    after = contents(home)
    assert after.keys() - before.keys() == {f"mine/{name}" for name in made}
    draw(ldm, run, "n=2", "output=.")
    assert contents(home).keys() - after.keys() == made
    assert contents(home).items() >= before.items()
    assert {path.name for path in tmp_path.iterdir()} == {"home", "run"}


@pytest.mark.parametrize("name", ["000001.png", "grid.png", RECORD, "000000.png"])
def test_what_is_in_the_way_is_named_before_any_work(name: str, run: Path, tmp_path: Path, ldm: Ldm) -> None:
    folder = tmp_path / "out"
    if name == "000000.png":  # one of ours, edited
        draw(ldm, run, "n=2", f"output={folder}")
        Image.open(folder / name).convert("L").save(folder / name)
    else:
        folder.mkdir()
        (folder / name).write_bytes(b"the user's")
    before = contents(tmp_path), sorted(tmp_path.rglob("*"))
    refused(ldm("sample", f"run={run}", "n=40", f"output={folder}"), name, "move it away", "output=")
    assert (contents(tmp_path), sorted(tmp_path.rglob("*"))) == before


def test_output_is_a_folder_for_every_verb(run: Path, first_stage_run: Path, tmp_path: Path, ldm: Ldm) -> None:
    (tmp_path / "file").write_text("the user's")
    before = contents(tmp_path)
    for verb in (["sample", f"run={run}"], ["reconstruct", f"run={first_stage_run}"], ["doctor", f"run={run}"]):
        for wrong, mend in (("sheet.png", f"write output={tmp_path}/sheet"), ("file", "is a file")):
            refused(ldm(*verb, f"output={tmp_path / wrong}"), f"{tmp_path / wrong} ", mend)
    assert contents(tmp_path) == before
    for verb in (["reconstruct", f"run={first_stage_run}", "n=2"], ["doctor", f"run={run}"]):
        assert ldm(*verb, f"output={tmp_path}/out").code == 0
    made = {"out/sheet.png", "out/sheet.json", "out/doctor.json", f"out/{RECORD}"}
    assert contents(tmp_path).keys() - before.keys() == made


def test_a_run_begins_in_no_folder_of_something_else(pictures: Path, tmp_path: Path, ldm: Ldm) -> None:
    project = tmp_path / "project"
    project.mkdir()
    (project / "config.yaml").write_text("theme: dark # of the user's site\n")
    train = ["train", "data=image_folder", f"data.root={pictures}", *TINY_FIRST_STAGE, f"runs={tmp_path}"]
    refused(ldm(*train, "name=project"), "project holds something else", "config.yaml", "name=")
    assert contents(project) == {"config.yaml": b"theme: dark # of the user's site\n"}


@pytest.mark.slow
def test_training_goes_beside_what_is_in_the_way(pictures: Path, tmp_path: Path, ldm: Ldm) -> None:
    train = ["train", "data=image_folder", f"data.root={pictures}", *TINY_FIRST_STAGE, f"runs={tmp_path}", "name=run"]
    assert ldm(*train).code == 0
    run = tmp_path / "run"
    own = ["curves.png", "samples/reconstructions_0000009.png", "export/weights-mine.safetensors", "export/notes.txt"]
    for name in own:
        (run / name).write_bytes(b"the user's")
    config = f"# the first try\n{(run / 'config.yaml').read_text()}"
    (run / "config.yaml").write_text(config)
    assert ldm(*train, "trainer.max_steps=9").code == 0
    assert [(run / name).read_bytes() for name in own] == [b"the user's"] * len(own)
    assert (run / "config-1.yaml").read_text() == config
    for ours in ("curves-1.png", "samples/reconstructions_0000009-1.png"):
        assert Image.open(run / ours).size[0] > 0
    assert len(list((run / "export").glob("weights-*"))) == 2  # the user's, and of ours the new ones alone


# --- what is ours ----------------------------------------------------------------------------------------------------


def test_a_drawing_grows_and_is_never_drawn_twice(run: Path, ldm: Ldm) -> None:
    folder = run / "samples" / "seed0"
    draw(ldm, run, "n=20", "grid=30")
    grid, first = Image.open(folder / "grid.png").size, kept(folder)
    assert len(first) == 20
    said = draw(ldm, run, "n=4").out
    assert "4 pictures, 4 of them drawn before" in said
    assert "it keeps all 20" in said
    assert kept(folder) == first
    said = draw(ldm, run, "n=29", "grid=30").out
    assert "29 pictures, 20 of them drawn before" in said
    assert len(kept(folder)) == 29
    assert kept(folder).items() >= first.items()
    assert Image.open(folder / "grid.png").size[1] > grid[1]


def test_other_settings_have_a_folder_of_their_own(run: Path, tmp_path: Path, ldm: Ldm) -> None:
    places = {"n=5": "seed0", "steps=3": "seed0-2", "classes=[one]": "seed0-3", "seed=1": "seed1"}
    for args, name in places.items():
        assert f": {run / 'samples' / name}\n" in draw(ldm, run, "n=3", args).out
    lines = (run / "samples" / "seed0-3" / RECORD).read_text().splitlines()
    protocol = json.loads(lines[1])["protocol"]
    assert (protocol["classes"], protocol["seed"], protocol["sampler"]) == (["one"], 0, "Euler, 2 evaluations")
    assert protocol["run"] == str(run)
    before = contents(run)
    for args, name in places.items():  # each finds its own again, also as the other way to say the same
        assert f": {run / 'samples' / name}" in draw(ldm, run, "n=3", args).out
    assert "drawn before: " in draw(ldm, run, "n=3", "classes=[0]").out
    assert "seed0 is kept: it holds another drawing (settings: " in draw(ldm, run, "n=3", "steps=3").out
    assert contents(run) == before

    out = f"output={tmp_path}/out"
    draw(ldm, run, "n=3", out)
    before = contents(tmp_path)
    for args, said in (("seed=1", "seed: 0 -> 1"), ("scale=3", "guidance: "), ("sampler=heun", "settings: ")):
        refused(ldm("sample", f"run={run}", "n=3", out, args), "holds another drawing", said, "another output=")
    assert contents(tmp_path) == before


def test_what_another_program_drew_there_is_kept(run: Path, ldm: Ldm) -> None:
    """Such as an earlier version, which left no record."""
    (run / "samples" / "seed0").mkdir()
    (run / "samples" / "seed0" / "000000.png").write_bytes(b"an old one")
    done = draw(ldm, run, "n=2")
    assert "seed0 is kept: it holds another drawing (of unknown origin)" in done.out
    assert contents(run / "samples" / "seed0") == {"000000.png": b"an old one"}
    assert len(kept(run / "samples" / "seed0-2")) == 2


def test_one_command_at_a_time(run: Path, tmp_path: Path, ldm: Ldm) -> None:
    (tmp_path / "out").mkdir()
    with lock(tmp_path / "out"):
        refused(ldm("sample", f"run={run}", f"output={tmp_path}/out"), "another command is at work", "output=")


SLAY = """
import os, pathlib, signal
replace, count = pathlib.Path.replace, 0
def slay(self, target):
    global count
    if os.environ["SLAY_IN"] in str(target):
        if count == int(os.environ["SLAY_AT"]):
            os.kill(os.getpid(), signal.SIGKILL)
        count += 1
    return replace(self, target)
pathlib.Path.replace = slay
"""


@pytest.mark.slow
def test_sampling_killed_and_continued_is_never_killed(
    run: Path, tmp_path: Path, ldm: Ldm, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "slay").mkdir()
    (tmp_path / "slay" / "sitecustomize.py").write_text(SLAY)
    path = os.pathsep.join([str(tmp_path / "slay"), str(Path.cwd()), os.environ.get("PYTHONPATH", "")])
    command = ["sample", f"run={run}", "n=20", "batch_size=6"]

    def killed(at: int) -> None:
        environment = {**os.environ, "PYTHONPATH": path, "SLAY_IN": f"{tmp_path}/killed/", "SLAY_AT": str(at)}
        done = subprocess.run(
            [sys.executable, "-m", "ldm_lightning", *command, f"output={tmp_path}/killed"],
            env=environment,
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )
        assert done.returncode == -signal.SIGKILL, done.stderr

    done = ldm(*command, f"output={tmp_path}/whole")
    assert done.code == 0, done.err
    # The record is the first file. Killed at the third picture of the second batch, and then within the third.
    killed(1 + 6 + 2)
    assert sorted(kept(tmp_path / "killed")) == [f"{number:06d}.png" for number in range(8)]
    first = kept(tmp_path / "killed")
    killed(4 + 3)
    assert len(kept(tmp_path / "killed")) == 15
    done = ldm(*command, f"output={tmp_path}/killed")
    assert done.code == 0, done.err
    assert "20 pictures, 15 of them drawn before" in done.out
    assert contents(tmp_path / "killed") == contents(tmp_path / "whole")
    assert kept(tmp_path / "killed").items() >= first.items()
    # What is lost is drawn in its old company, whatever the batch now.
    for name in ("000001.png", "000013.png", "000014.png", "grid.png"):
        (tmp_path / "killed" / name).unlink()
    batches: list[list[int]] = []
    sample = LatentDiffusion.sample_latents

    def watched(self: LatentDiffusion, index: torch.Tensor, *args: Any) -> torch.Tensor:
        batches.append(index.tolist())
        return sample(self, index, *args)

    monkeypatch.setattr(LatentDiffusion, "sample_latents", watched)
    assert ldm(*command, "batch_size=1", f"output={tmp_path}/killed").code == 0
    assert batches == [list(range(6)), list(range(12, 18))]
    assert contents(tmp_path / "killed") == contents(tmp_path / "whole")


def test_every_measurement_is_kept_with_its_picture(run: Path, ldm: Ldm) -> None:
    folder = run / "evaluation"

    def evaluate(*args: str) -> str:
        done = ldm("evaluate", f"run={run}", "judge=false", "extractor=tiny", *args)
        assert done.code == 0, done.err
        return done.out

    def scales() -> dict[str, tuple[str, bytes]]:
        pages = {page.stem: json.loads(page.read_text()) for page in folder.glob("*.json")}
        assert all(page["picture"] == f"{name}.png" for name, page in pages.items())
        return {
            name: (page["protocol"]["guidance"], (folder / page["picture"]).read_bytes())
            for name, page in pages.items()
        }

    assert "is kept" not in evaluate("scale=1")
    before = contents(folder)
    assert "is kept" not in evaluate("scale=1")
    assert contents(folder) == before
    one = scales()["metrics"]
    assert f"an earlier metrics is kept: {folder}/metrics-1.json" in evaluate("scale=4")
    four = scales()["metrics"]
    assert one[0] != four[0]
    assert one[1] != four[1]
    assert scales() == {"metrics": four, "metrics-1": one}
    evaluate("scale=1")
    assert scales() == {"metrics": one, "metrics-1": one, "metrics-2": four}

    Image.new("L", (2, 2)).save(folder / "metrics.png")
    before = contents(folder)
    refused(ldm("evaluate", f"run={run}"), "metrics.png is not, or no longer, what ldm wrote", "name=")
    (folder / "mine.json").write_text("{}")
    refused(ldm("evaluate", f"run={run}", "name=mine"), "mine.json")
    assert contents(folder) == {**before, "mine.json": b"{}"}


def test_a_sweep_keeps_what_another_left(
    run: Path, tmp_path: Path, ldm: Ldm, recwarn: pytest.WarningsRecorder, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs = tmp_path / "runs"
    monkeypatch.setenv("LDM_RUNS", str(runs))
    refused(ldm("doctor", "--multirun", "output=a,b"), "run has no value yet")
    assert not [warning for warning in recwarn if "Callback" in str(warning.message)]
    for output in ("a,b", "a,b", "a,c"):
        names = ",".join(f"{tmp_path}/{name}" for name in output.split(","))
        done = ldm("doctor", "--multirun", f"run={run}", f"output={names}")
        assert done.code == 0, done.err
        assert ("multirun-2.yaml" in done.out) == (output == "a,c")
    assert f"{tmp_path}/b" in (runs / "multirun-2.yaml").read_text()
    assert f"{tmp_path}/c" in (runs / "multirun.yaml").read_text()
    assert not (runs / "multirun-3.yaml").exists()
