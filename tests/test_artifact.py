"""Artifacts and their copies: whole, current, and without a word to what lies beside them."""

from __future__ import annotations

import json
import os
import stat
from pathlib import Path

import pytest
import torch

from ldm_lightning.artifact import copy_artifact, locate, read_artifact, replacing, sweep, write_artifact
from ldm_lightning.errors import UserError
from tests.conftest import killed_at


def test_a_file_and_then_its_name_reach_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The old one makes way between the two: after the new one is safe, before its name is taken."""
    path, order = tmp_path / "file", list[tuple[str, bytes]]()
    path.write_bytes(b"old")

    def fsync(descriptor: int) -> None:
        kind = "folder" if stat.S_ISDIR(os.fstat(descriptor).st_mode) else "file"
        order.append((kind, path.read_bytes()))

    monkeypatch.setattr(os, "fsync", fsync)
    with replacing(path, make_way=lambda: order.append(("make way", path.read_bytes()))) as file:
        file.write(b"new")
    assert order == [("file", b"old"), ("make way", b"old"), ("folder", b"new")]


def test_a_copy_is_replaced_unless_it_is_the_same(tmp_path: Path) -> None:
    """The same weights with other statistics are another first stage."""
    run, copy = tmp_path / "run", tmp_path / "copy"
    weights = {"weight": torch.arange(3.0)}
    write_artifact(run / "export", "first_stage", weights, {"statistics": {"std": [1.0]}})
    (run / "export" / "evaluation").mkdir()
    copy_artifact(run, copy)
    assert {file.name for file in copy.iterdir()} == {"manifest.json", read_artifact(run).manifest["weights"]}
    before = (copy / "manifest.json").stat().st_ino
    copy_artifact(run, copy)
    assert (copy / "manifest.json").stat().st_ino == before
    write_artifact(run / "export", "first_stage", weights, {"statistics": {"std": [2.0]}})
    copy_artifact(run, copy)
    assert read_artifact(copy).manifest["statistics"] == {"std": [2.0]}
    (copy / "manifest.json").unlink()
    copy_artifact(run, copy)
    assert torch.equal(read_artifact(copy, "first_stage").weights["weight"], weights["weight"])
    assert {file.name for file in tmp_path.iterdir()} == {"run", "copy"}


def own(folder: Path) -> dict[Path, bytes]:
    """Files of the user's, beside an artifact in ``folder``."""
    (folder / "pictures").mkdir(parents=True)
    names = ("weights-mine.safetensors", "weights-0123456789ab.safetensors", ".hidden", "pictures/1.png")
    for name in names:
        (folder / name).write_bytes(b"the user's")
    return {folder / name: b"the user's" for name in names}


def test_what_lies_beside_an_artifact_stays(tmp_path: Path) -> None:
    run, copy = tmp_path / "run", tmp_path / "copy"
    users = own(run / "export") | own(copy)
    for step in range(3):
        write_artifact(run / "export", "first_stage", {"weight": torch.full((2,), float(step))}, {"step": step})
        copy_artifact(run, copy)
        for folder in (run, copy):
            assert read_artifact(folder).manifest["step"] == step
            ours = {path for path in locate(folder).rglob("*") if path.is_file()} - users.keys()
            assert {path.name for path in ours} == {"manifest.json", read_artifact(folder).manifest["weights"]}
    assert {path: path.read_bytes() for path in users} == users


def test_weights_are_only_deleted_where_they_are_those_of_the_manifest(tmp_path: Path) -> None:
    write_artifact(tmp_path, "first_stage", {"weight": torch.zeros(1)}, {})
    edited = tmp_path / read_artifact(tmp_path).manifest["weights"]
    edited.write_bytes(b"the user's")
    write_artifact(tmp_path, "first_stage", {"weight": torch.ones(1)}, {})
    assert edited.read_bytes() == b"the user's"


@pytest.mark.parametrize("content", ["{}", "[]", "no JSON", '{"kind": "web app"}'])
def test_a_manifest_of_something_else_is_kept(content: str, tmp_path: Path) -> None:
    for write in (
        lambda folder: write_artifact(folder, "first_stage", {"weight": torch.zeros(1)}, {}),
        lambda folder: copy_artifact(tmp_path / "0", folder),
    ):
        folder = tmp_path / str(len(list(tmp_path.iterdir())))
        folder.mkdir()
        (folder / "manifest.json").write_text(content)
        write(folder)
        assert (folder / "manifest-1.json").read_text() == content
        assert read_artifact(folder).weights["weight"] == 0


@pytest.mark.parametrize("changes", range(5))
def test_a_copy_killed_in_the_middle_is_the_old_one_or_the_new_one(changes: int, tmp_path: Path) -> None:
    for step in range(2):
        write_artifact(tmp_path / str(step), "first_stage", {"weight": torch.full((1,), float(step))}, {"step": step})
    copy_artifact(tmp_path / "0", tmp_path / "copy")
    whole = {path.name: path.read_bytes() for path in (tmp_path / "1").iterdir()}
    assert killed_at(changes, lambda: copy_artifact(tmp_path / "1", tmp_path / "copy")) == (changes < 3)
    assert read_artifact(tmp_path / "copy").weights["weight"] == (changes > 1)
    copy_artifact(tmp_path / "1", tmp_path / "copy")
    left = {path.name: path.read_bytes() for path in (tmp_path / "copy").iterdir()}
    assert {name: left[name] for name in whole} == whole
    # Killed just before they were deleted, the old weights stay: no manifest tells any more whose they are.
    assert len(left) == 2 + (changes == 2)


def test_what_a_killed_writer_leaves_is_swept_and_what_only_looks_like_it_stays(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("old")

    def write() -> None:
        with replacing(tmp_path / "a.csv") as file:
            file.write(b"new")

    assert killed_at(0, write)
    (left,) = tmp_path.glob(".*")
    users = [tmp_path / f".{name}.{'0123456789abcdef' * 2}" for name in ("b.csv", "c.csv", "d.csv")]
    users[0].write_text("the user's")
    (users[1] / "deep").mkdir(parents=True)
    users[2].mkdir()
    for record in ("", '{"record": "of something else", "file": "d.csv"}', "[]"):
        (users[2] / "scratch.json").write_text(record)
        (users[2] / "d.csv").write_text("the user's")
        sweep(tmp_path)
        assert not left.exists()
        assert users[0].read_text() == (users[2] / "d.csv").read_text() == "the user's"
        assert (users[1] / "deep").is_dir()
    assert (tmp_path / "a.csv").read_text() == "old"


def test_what_was_put_into_a_killed_writers_folder_stays(tmp_path: Path) -> None:
    def write() -> None:
        with replacing(tmp_path / "a.csv") as file:
            file.write(b"new")

    assert killed_at(0, write)
    (left,) = tmp_path.glob(".*")
    (left / "notes.txt").write_text("the user's")
    sweep(tmp_path)
    assert [path.name for path in left.iterdir()] == ["notes.txt"]
    write()
    assert sorted(path.name for path in tmp_path.iterdir()) == [left.name, "a.csv"]


def test_weights_outside_of_their_folder_are_refused(tmp_path: Path) -> None:
    write_artifact(tmp_path / "run", "first_stage", {"weight": torch.zeros(1)}, {})
    manifest = tmp_path / "run" / "manifest.json"
    (tmp_path / "secret").write_bytes(
        (tmp_path / "run" / read_artifact(tmp_path / "run").manifest["weights"]).read_bytes()
    )
    manifest.write_text(json.dumps(json.loads(manifest.read_text()) | {"weights": "../secret"}))
    for read in (read_artifact, lambda run: copy_artifact(run, tmp_path / "deep" / "copy")):
        with pytest.raises(UserError, match=r"names weights=\.\./secret, which lie elsewhere"):
            read(tmp_path / "run")
