"""Folders of results, and the record by which the program knows what in them is its own.

Nothing that it did not write itself is replaced or deleted, whatever its name. ``written.jsonl`` tells: after a first
line that says what it is, every line names files with their size and SHA-256, *before* they are written. So a
killed writer leaves no file that the record does not know, and of one that was being replaced it knows both contents. A
last line without its end was never in force. The record only grows, by a line a batch of files, so that of many files
each costs no more than of few.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ldm_lightning.artifact import replacing
from ldm_lightning.errors import UserError

__all__ = ["RECORD", "Output"]

RECORD = "written.jsonl"
_HEADER = {"record": "what ldm_lightning wrote here", "format": 1}


class Output:
    """A folder of results; only one process at a time may write to it.

    Args:
        folder: which is made with the first file.
        mend: what to do when something is in the way, for messages.

    Attributes:
        notes: what was recorded beside files, in order.

    Raises:
        UserError: a file called like the record is none.
    """

    def __init__(self, folder: Path, mend: str = "move it away, or choose another output=...") -> None:
        self.folder, self.mend = folder, mend
        self.notes: list[dict[str, Any]] = []
        self._known: dict[str, list[dict[str, Any]]] = {}
        self._end = 0
        if os.path.lexists(folder / RECORD):
            self._read()

    def _read(self) -> None:
        try:
            content = (self.folder / RECORD).read_bytes()
            self._end = content.rfind(b"\n") + 1
            header, *lines = (json.loads(line) for line in content[: self._end].splitlines())
            if header != _HEADER:
                raise ValueError
            for line in lines:
                self._remember(line)
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            raise UserError(f"{self.folder / RECORD} is not, or no longer, a record of ours: {self.mend}") from None

    def _remember(self, line: dict[str, Any]) -> None:
        for name, entry in line.get("files", {}).items():
            self._known.setdefault(name, []).append({"size": entry["size"], "sha256": entry["sha256"]})
        if note := {key: value for key, value in line.items() if key != "files"}:
            self.notes.append(note)

    def owns(self, name: str) -> bool:
        """Whether the file of this name is ours and unchanged."""
        path = self.folder / name
        if name not in self._known or path.is_symlink() or not path.is_file():
            return False
        if path.stat().st_size not in {entry["size"] for entry in self._known[name]}:
            return False
        return _entry(path.read_bytes()) in self._known[name]

    def has(self, name: str) -> bool:
        """Whether there is a file of this name, ours and unchanged.

        Raises:
            UserError: there is something else.
        """
        if not os.path.lexists(self.folder / name):
            return False
        if not self.owns(name):
            raise UserError(f"{self.folder / name} is not, or no longer, what ldm wrote there: {self.mend}")
        return True

    def add(self, files: Mapping[str, bytes], **note: Any) -> None:
        """Write files by name, each whole or not at all; earlier ones of ours give way.

        Raises:
            UserError: something else has one of the names; nothing is written.
        """
        for name in files:
            self.has(name)
        entries = {name: _entry(content) for name, content in files.items()}
        new = {name: entry for name, entry in entries.items() if entry not in self._known.get(name, [])}
        if new or note:
            self._record({**note, **({"files": new} if new else {})})
        for name, content in files.items():
            path = self.folder / name
            if path.is_file() and _entry(path.read_bytes()) == entries[name]:
                continue
            with replacing(path, entries[name]["sha256"][:16]) as file:
                file.write(content)

    def _record(self, line: dict[str, Any]) -> None:
        if not self._end:
            self.folder.mkdir(parents=True, exist_ok=True)
            header = _encode(_HEADER)
            with replacing(self.folder / RECORD, _entry(header)["sha256"][:16]) as file:
                file.write(header)
            self._end = len(header)
        with (self.folder / RECORD).open("r+b") as file:
            file.seek(self._end)
            self._end += file.read().rfind(b"\n") + 1
            file.truncate(self._end)
            file.seek(self._end)
            file.write(_encode(line))
            file.flush()
            os.fsync(file.fileno())
            self._end = file.tell()
        self._remember(line)

    def place(self, name: str) -> str:
        """``name``, or the first of ``NAME-1.EXT``, ``NAME-2.EXT`` ... where nothing but ours lies.

        For work that goes on for long and must not end in a refusal.
        """
        path = Path(name)
        names = itertools.chain([name], (f"{path.stem}-{k}{path.suffix}" for k in itertools.count(1)))
        return next(free for free in names if not os.path.lexists(self.folder / free) or self.owns(free))

    def check_result(self, name: str, *, picture: bool) -> None:
        """Check that :meth:`publish` may write the result ``name``.

        Raises:
            UserError: something else has one of its names.
        """
        self.has(f"{name}.json")
        if picture:
            self.has(f"{name}.png")

    def publish(self, name: str, facts: Mapping[str, Any], picture: bytes | None = None) -> str | None:
        """Write a result as ``NAME.json``, with its picture as ``NAME.png``, which it then names.

        An earlier result of ours stays, as the first ``NAME-1``, ``NAME-2`` ... that is free, unless it is the same.
        Whenever the writer is killed, no ``.json`` lies beside the picture of another.

        Returns:
            The name under which an earlier result is kept, if there is one.

        Raises:
            UserError: something else has one of the names; nothing is written.
        """
        self.check_result(name, picture=picture is not None)
        page, sheet = f"{name}.json", f"{name}.png"
        new = {page: _page(facts, None if picture is None else sheet)}
        if picture is not None:
            new = {sheet: picture, **new}
        there = {file: (self.folder / file).read_bytes() for file in (page, sheet) if self.owns(file)}
        lost = any(new.get(file) != content for file, content in there.items())
        kept = self._keep(name, there) if lost else None
        for file in there if lost else ():  # the page first, so that it never lies beside another picture
            if file == page or file not in new:
                (self.folder / file).unlink()
        self.add(new)
        return kept

    def _keep(self, name: str, there: Mapping[str, bytes]) -> str:
        """Copy the result ``name`` to the first spare name, or to where a killed attempt has begun to."""
        paired = len(there) == 2
        for k in itertools.count(1):
            spare = f"{name}-{k}"
            copies = {f"{spare}{Path(file).suffix}": content for file, content in there.items()}
            if paired:
                page = f"{spare}.json"
                copies[page] = _page(json.loads(copies[page]), f"{spare}.png")
            elif f"{spare}.json" in copies and os.path.lexists(self.folder / f"{spare}.png"):
                continue  # a page without a picture must not seem to have one
            if all(self._is_free_for(file, content) for file, content in copies.items()):
                break
        self.add(dict(reversed(copies.items())))
        return spare

    def _is_free_for(self, name: str, content: bytes) -> bool:
        path = self.folder / name
        return not os.path.lexists(path) or (self.owns(name) and path.read_bytes() == content)


def _entry(content: bytes) -> dict[str, Any]:
    return {"size": len(content), "sha256": hashlib.sha256(content).hexdigest()}


def _encode(line: Mapping[str, Any]) -> bytes:
    return json.dumps(line).encode() + b"\n"


def _page(facts: Mapping[str, Any], picture: str | None) -> bytes:
    named = {} if picture is None else {"picture": picture}
    return json.dumps({**facts, **named}, indent=2).encode()
