"""Captions in a file beside the pictures: a table with the columns ``file`` (relative to the root) and ``caption``."""

from __future__ import annotations

import csv
import json
from collections.abc import Collection, Iterator
from pathlib import Path

from ldm_lightning.errors import UserError, nearest

__all__ = ["read_captions"]

_COLUMNS = ("file", "caption")


def _rows(path: Path) -> Iterator[tuple[int, dict[str, object]]]:
    """Line number and columns of every row."""
    kind = path.suffix.lower()
    if kind not in (".csv", ".tsv", ".jsonl"):
        raise UserError(f"captions file {path} is none of .csv, .tsv and .jsonl")
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            if kind == ".jsonl":
                for number, line in enumerate(file, start=1):
                    if line.strip():
                        yield number, dict(json.loads(line))
            else:
                reader = csv.DictReader(file, delimiter="\t" if kind == ".tsv" else ",")
                for row in reader:
                    yield reader.line_num, dict(row)
    except OSError as error:
        raise UserError(f"captions file {path} cannot be read: {error.strerror}; check data.source.captions") from error
    except (ValueError, TypeError, csv.Error) as error:
        raise UserError(f"captions file {path} is not a {kind} table in UTF-8: {error}") from error


def read_captions(path: Path, files: Collection[str]) -> dict[str, str]:
    """Read a ``.csv``, ``.tsv`` (both with a header line) or ``.jsonl`` file of captions.

    Args:
        path: the file.
        files: the pictures that exist, as posix paths relative to their root.

    Returns:
        Captions by file; pictures that the table leaves out are missing.

    Raises:
        UserError: the file is unreadable, lacks a column, or names a picture twice or one that does not exist.
    """
    files = set(files)
    captions: dict[str, str] = {}
    for number, row in _rows(path):
        for column in _COLUMNS:
            if column not in row:
                found = ", ".join(map(str, row))
                raise UserError(f"{path}:{number} has no column '{column}', only {found}{nearest(column, row)}")
        file = str(row["file"]).removeprefix("./")
        if file not in files:
            raise UserError(f"{path}:{number} names no picture: '{file}'{nearest(file, files)}")
        if file in captions:
            raise UserError(f"{path}:{number} gives '{file}' a second caption; keep one for each picture")
        captions[file] = str(row["caption"] or "")
    return captions
