"""Places that are not there are refused at once: before torch is imported, and in the words of who reads them later."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from ldm_lightning.data.folder import ImageFolder
from ldm_lightning.errors import UserError
from tests.conftest import Result

# Runs commands one after the other in one process, and tells what each says, and whether torch has been imported.
_PROGRAM = """
import contextlib, io, json, sys
from ldm_lightning.cli import main

for command in json.load(sys.stdin):
    sys.argv, out, err = ["ldm", *command], io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            main()
            code = 0
        except SystemExit as stop:
            code = stop.code or 0
    print(json.dumps([code, out.getvalue(), err.getvalue(), "torch" in sys.modules]))
"""


def _said(tmp_path: Path, commands: list[list[str]]) -> list[tuple[int, str, str, bool]]:
    done = subprocess.run(
        [sys.executable, "-c", _PROGRAM],
        input=json.dumps(commands),
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
    )
    return [tuple(json.loads(line)) for line in done.stdout.splitlines()]


def test_what_is_misspelt_is_refused_without_torch(tmp_path: Path) -> None:
    (tmp_path / "begun").mkdir()
    second = ["train", "stage=latent_diffusion"]
    mistakes = {
        "data.root=no does not exist; check": ["train", "data=image_folder", "data.root=no"],
        "data.root=nor does not exist; check": [
            "train",
            "--multirun",
            "data=image_folder",
            "data.root=nor",
            "seed=1,2",
        ],
        "data.root has no value yet": ["train", "data=image_folder"],
        "data.source.path=./no does not exist": ["train", "data=huggingface", "data.source.path=./no"],
        "no does not exist: give the folder of a finished run": [*second, "first_stage.run=no"],
        "first_stage.run has no value yet": second,
        "guide does not exist": [*second, "first_stage=identity", "guidance=autoguidance", "guidance.run=guide"],
        "trainer.max_step'": ["train", "trainer.max_step=3"],
        "trainer.max_time=12h": ["train", "trainer.max_time=12h"],
        "seed=x": ["train", "seed=x"],
        "name=aaaaaaaa": ["train", f"name={300 * 'a'}"],
        "begun holds no finished model": ["sample", "run=begun"],
        "begun holds no run": ["doctor", "run=begun"],
        "run has no value yet": ["evaluate"],
        "source has no value yet": ["import", "data.root=begun"],
        "source=a/b/c is neither": ["import", "source=a/b/c", "data.root=begun"],
    }
    for (code, _, err, torch), fragment in zip(_said(tmp_path, [*mistakes.values()]), mistakes, strict=True):
        assert (code, torch) == (2, False), err
        assert fragment in err
        assert "Traceback" not in err
        assert sum(line.startswith("ldm ") for line in err.splitlines()) == 1


def test_what_only_shows_needs_no_torch(tmp_path: Path) -> None:
    for code, out, _, torch in _said(tmp_path, [["train", "--cfg", "job"], ["sample", "--help"]]):
        assert (code, torch) == (0, False)
        assert "seed" in out


def test_the_words_are_those_of_the_source(tmp_path: Path, ldm: Callable[..., Result]) -> None:
    place = tmp_path / "no"
    with pytest.raises(UserError) as later:
        ImageFolder(str(place)).prepare()
    early = ldm("train", "data=image_folder", f"data.root={place}")
    assert early.err == f"ldm train: {later.value}\n"


def test_a_source_of_the_users_own_makes_of_its_place_what_it_likes(
    tmp_path: Path, ldm: Callable[..., Result], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "remote.py").write_text(
        "from ldm_lightning.errors import UserError\n"
        "class Remote:\n"
        "    def __init__(self, root: str) -> None:\n"
        "        raise UserError(f'asked for {root}')\n"
    )
    monkeypatch.chdir(tmp_path)
    source = ["~data.source", "+data.source={_target_:remote.Remote,root:store://pictures}"]
    done = ldm("train", "data=image_folder", 'data.root="store://pictures"', *source)
    assert done.code == 2
    assert "asked for store://pictures" in done.err


def test_a_sweep_goes_over_runs_and_makes_none_of_a_misspelt_name(
    first_stage_run: Path, tmp_path: Path, ldm: Callable[..., Result], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LDM_RUNS", str(tmp_path / "runs"))
    runs = [shutil.copytree(first_stage_run, tmp_path / name) for name in ("one", "two")]
    done = ldm("doctor", "--multirun", f"run={runs[0]},{tmp_path}/three,{runs[1]}")
    assert done.code == 2
    assert done.out.count("written to") == 2
    assert "1 of 3 jobs failed" in done.err
    assert f"run={tmp_path}/three: {tmp_path}/three does not exist" in done.err
    assert not (tmp_path / "three").exists()
