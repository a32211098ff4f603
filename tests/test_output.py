"""The record of a folder tells what is ours, whatever happens to folder, file or writer."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path

import pytest

from ldm_lightning.errors import UserError
from ldm_lightning.output import RECORD, Output
from tests.conftest import killed_at


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_only_what_was_written_is_ours(tmp_path: Path) -> None:
    Output(tmp_path / "new").add({"a": b"1", "b": b""})
    output = Output(tmp_path / "new")
    assert output.has("a")
    assert output.has("b")
    assert not output.has("c")
    (output.folder / "c").write_bytes(b"1")  # a content of ours, under another name
    (output.folder / "a").write_bytes(b"2")
    (output.folder / "b").unlink()
    (output.folder / "b").symlink_to("b is elsewhere")
    for name in "abc":
        assert not output.owns(name)
        with pytest.raises(UserError, match=f"/{name} is not, or no longer, what ldm wrote there: move it away"):
            output.has(name)
    before = {name: (output.folder / name).lstat() for name in "abc"}
    with pytest.raises(UserError, match="/a is not"):
        output.add({"d": b"4", "a": b"1"})
    assert not (output.folder / "d").exists()
    assert {name: (output.folder / name).lstat() for name in "abc"} == before


def test_a_writer_killed_between_record_and_file_leaves_nothing_unknown(tmp_path: Path) -> None:
    output = Output(tmp_path)
    output.add({"a": b"old"})
    whole = contents(tmp_path)
    output.add({"a": b"new"}, step=1)
    lines = (tmp_path / RECORD).read_bytes().splitlines(keepends=True)
    for written in (b"old", b"new"):  # the line is there before the file is
        (tmp_path / "a").write_bytes(written)
        assert Output(tmp_path).has("a")
    for length in (1, len(lines[-1]) - 1):  # of the line, a part
        (tmp_path / RECORD).write_bytes(b"".join(lines[:-1]) + lines[-1][:length])
        (tmp_path / "a").write_bytes(b"old")
        torn = Output(tmp_path)
        assert torn.has("a")
        assert torn.notes == []
        torn.add({"a": b"old"})
        assert (tmp_path / "a").read_bytes() == b"old"
        torn.add({"a": b"new"}, step=1)
        assert (tmp_path / RECORD).read_bytes() == b"".join(lines)
        assert Output(tmp_path).notes == [{"step": 1}]
    assert whole.keys() == contents(tmp_path).keys()


@pytest.mark.parametrize("content", ["", "{}\n", "my notes", "my notes\n", '[1]\n{"files": 3}\n', "\xff\n"])
def test_a_file_called_like_the_record_is_left_alone(content: str, tmp_path: Path) -> None:
    (tmp_path / RECORD).write_text(content, encoding="latin-1")
    with pytest.raises(UserError, match="is not, or no longer, a record of ours"):
        Output(tmp_path)
    assert (tmp_path / RECORD).read_text(encoding="latin-1") == content


def test_results_are_kept_with_their_pictures(tmp_path: Path) -> None:
    def pairs() -> dict[str, tuple[int, bytes | None]]:
        found = {}
        for page in tmp_path.glob("*.json"):
            facts = json.loads(page.read_text())
            assert facts.get("picture", f"{page.stem}.png") == f"{page.stem}.png"
            found[page.stem] = facts["step"], (tmp_path / facts["picture"]).read_bytes() if "picture" in facts else None
        return found

    assert Output(tmp_path).publish("m", {"step": 1}, b"one") is None
    assert Output(tmp_path).publish("m", {"step": 1}, b"one") is None  # the same once more
    assert pairs() == {"m": (1, b"one")}
    assert Output(tmp_path).publish("m", {"step": 2}, b"two") == "m-1"
    (tmp_path / "m-2.png").write_bytes(b"the user's")
    assert Output(tmp_path).publish("m", {"step": 3}) == "m-3"
    assert pairs() == {"m": (3, None), "m-1": (1, b"one"), "m-3": (2, b"two")}
    assert not (tmp_path / "m.png").exists()
    assert Output(tmp_path).publish("m", {"step": 4}, b"four") == "m-4"
    assert pairs() == {"m": (4, b"four"), "m-1": (1, b"one"), "m-3": (2, b"two"), "m-4": (3, None)}
    assert (tmp_path / "m-2.png").read_bytes() == b"the user's"


@pytest.mark.parametrize("changes", range(6))
def test_a_killed_publication_is_repeated_and_never_mixes(changes: int, tmp_path: Path) -> None:
    """Killed for good before its n-th change of a name in the folder."""
    Output(tmp_path).publish("m", {"step": 1}, b"one")
    publish = partial(Output(tmp_path).publish, "m", {"step": 2}, b"two")
    assert killed_at(changes, publish) == (changes < 5)
    for page in tmp_path.glob("*.json"):
        facts = json.loads(page.read_text())
        assert (tmp_path / facts["picture"]).read_bytes() == {1: b"one", 2: b"two"}[facts["step"]]
    Output(tmp_path).publish("m", {"step": 2}, b"two")
    assert {path.name: path.read_bytes() for path in tmp_path.glob("*.png")} == {"m.png": b"two", "m-1.png": b"one"}
    assert {page.stem: json.loads(page.read_text())["step"] for page in tmp_path.glob("*.json")} == {"m": 2, "m-1": 1}
    assert contents(tmp_path).keys() == {"m.png", "m.json", "m-1.png", "m-1.json", RECORD}


def test_long_work_goes_beside_what_is_in_the_way(tmp_path: Path) -> None:
    (tmp_path / "curves.png").write_bytes(b"the user's")
    for content in (b"first", b"second"):
        output = Output(tmp_path)
        name = output.place("curves.png")
        output.add({name: content})
        assert name == "curves-1.png"
    assert (tmp_path / "curves.png").read_bytes() == b"the user's"
    assert (tmp_path / "curves-1.png").read_bytes() == b"second"


def test_two_writers_lose_no_line(tmp_path: Path) -> None:
    Output(tmp_path).add({"a": b"1"})
    one, other = Output(tmp_path), Output(tmp_path)
    one.add({"b": b"2"})
    other.add({"c": b"3"})
    one.add({"d": b"4"})
    assert all(Output(tmp_path).owns(name) for name in "abcd")
