"""Captions: texts in a table beside the pictures, or in a text file beside each; several a picture are meant.

A table is ``.csv``, ``.tsv`` (with a header line) or ``.jsonl`` and has the columns ``file`` and ``caption``, or
``file_name`` and ``text`` as in the ``metadata.csv`` of Hugging Face. Of several captions of a picture, training draws
one anew in every epoch, and measuring takes the first.
"""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ldm_lightning.data.scan import report
from ldm_lightning.errors import UserError, nearest

__all__ = ["BESIDE", "check_captioned", "locate_captions", "read_beside", "read_captions", "texts_of"]

BESIDE = ".txt"  # instead of a table's name: a text file beside each picture, one caption a line
_TABLES = (".csv", ".tsv", ".jsonl")
_COLUMNS = {"file": ("file", "file_name"), "caption": ("caption", "text")}
_DELIMITERS = (",", ";", "\t")
_MORE, _FEWER = "(more fields)", "(no such field)"  # what the reader of tables says of rows that do not fit


def texts_of(value: Any, where: str) -> tuple[str, ...]:
    """The captions that ``value`` is: one text, a sequence of texts, or nothing (None, NaN, blank texts).

    Args:
        value: as a table or a data set holds it.
        where: names the place in errors.

    Raises:
        UserError: it is anything else.
    """
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return ()
    if isinstance(value, str):
        return (value,) if value.strip() else ()
    if isinstance(value, Sequence) and all(isinstance(text, str) for text in value):
        return tuple(text for text in value if text.strip())
    raise UserError(f"{where} holds no caption but {value!r}: give a text, or a list of texts")


def locate_captions(captions: str, root: Path) -> Path:
    """The file that ``captions`` names: below ``root``, else from the current folder.

    Raises:
        UserError: it is in neither place.
    """
    named = Path(captions).expanduser()
    below, here = root / named, Path.cwd() / named
    for path in (below, here):
        if path.is_file():
            return path
    raise UserError(
        f"captions file {captions} is neither below data.root ({below}) nor in the current folder ({here}): check "
        "data.captions"
    )


def check_captioned(
    collection: str, names: Sequence[str], captions: Sequence[tuple[str, ...]], max_uncaptioned: float
) -> None:
    """Count the pictures without a caption, and warn of them.

    Args:
        collection: name of the whole for messages.
        names: of the pictures.
        captions: of each picture.
        max_uncaptioned: largest share of them; unless it is 0, one picture may always be.

    Raises:
        UserError: they are more.
    """
    without = [name for name, texts in zip(names, captions, strict=True) if not texts]
    mend = "give them captions, or raise data.source.max_uncaptioned"
    report(
        collection,
        len(names),
        without,
        max_uncaptioned,
        what="have no caption",
        mend=mend,
        then="they are trained on with an empty one",
    )


def read_captions(
    path: Path, root: Path, files: Collection[str], encoding: str | None = None
) -> dict[str, tuple[str, ...]]:
    """Read a table of captions.

    Args:
        path: the file.
        root: folder of the pictures.
        files: the pictures that exist, as posix paths relative to ``root``. The table may also name them by paths with
            backslashes, or absolute ones.
        encoding: of the table; None for UTF-8, or UTF-16 with its byte order mark.

    Returns:
        Captions by file; pictures that the table leaves out are missing.

    Raises:
        UserError: the file is unreadable, holds no rows, lacks a column, has rows that do not fit its header, or
            names a picture that does not exist.
    """
    files, captions, column = set(files), dict[str, tuple[str, ...]](), dict[str, str]()
    for number, row in _rows(path, encoding):
        place = f"{path}:{number}"
        for role, names in _COLUMNS.items() if not column else ():
            found = [name for name in names if name in row]
            if not found:
                listed, choices = ", ".join(map(str, row)), " or ".join(f"'{name}'" for name in names)
                raise UserError(f"{place} has no column {choices}, only {listed}{nearest(names[0], map(str, row))}")
            column[role] = found[0]
        if _MORE in row:
            raise UserError(f"{place} has more fields than the header: put a caption that holds a comma in quotes")
        if _FEWER in row.values():
            raise UserError(f"{place} has fewer fields than the header: complete it, or put line breaks in quotes")
        if missing := [name for name in column.values() if name not in row]:
            raise UserError(f"{place} has no '{missing[0]}', which the first row has: give null where there is none")
        file = _relative(str(row[column["file"]]), root, files)
        if file not in files:
            raise UserError(f"{place} names no picture: '{file}'{nearest(file, files)}")
        texts = texts_of(row[column["caption"]], f"{place}, column '{column['caption']}',")
        captions[file] = (*captions.get(file, ()), *texts)
    if not captions:
        raise UserError(f"captions file {path} holds no captions below its header: add rows, or leave it out")
    return captions


def read_beside(root: Path, files: Collection[str], encoding: str | None = None) -> dict[str, tuple[str, ...]]:
    """Read the text file beside each picture that has one: every line that is not blank is a caption.

    Raises:
        UserError: a file is unreadable, or no picture has one.
    """
    found = {}
    for file in files:
        path = (root / file).with_suffix(BESIDE)
        if path.is_file():
            found[file] = texts_of([line.strip() for line in _text(path, encoding).splitlines()], str(path))
    if not found:
        raise UserError(f"no picture in {root} has a {BESIDE} file beside it: check data.root and data.captions")
    return found


def _relative(file: str, root: Path, files: Collection[str]) -> str:
    """The posix path relative to ``root`` that ``file`` is meant to be."""
    for spelling in (file, file.replace("\\", "/")):
        path = Path(spelling)
        if path.is_absolute():
            for base in (root, root.resolve()):
                if path.is_relative_to(base):
                    return path.relative_to(base).as_posix()
        elif (plain := path.as_posix()) in files:
            return plain
    return file


def _text(path: Path, encoding: str | None) -> str:
    """The file's text, whatever its encoding."""
    try:
        content = path.read_bytes()
    except OSError as error:
        raise UserError(f"captions file {path} cannot be read: {error.strerror}; check data.captions") from error
    marked = content.startswith((b"\xff\xfe", b"\xfe\xff"))
    try:
        return content.decode(encoding or ("utf-16" if marked else "utf-8-sig"))
    except (UnicodeDecodeError, LookupError) as error:
        raise UserError(
            f"captions file {path} is not in {encoding or 'UTF-8'} ({error}): name its encoding, such as "
            "data.source.encoding=latin-1"
        ) from error


def _rows(path: Path, encoding: str | None) -> Iterator[tuple[int, Mapping[str, Any]]]:
    """Line number and columns of every row."""
    kind = path.suffix.lower()
    if kind not in _TABLES:
        raise UserError(f"captions file {path} is none of {', '.join(_TABLES)}")
    text = _text(path, encoding)
    try:
        if kind == ".jsonl":
            for number, line in enumerate(text.splitlines(), start=1):
                if line.strip():
                    yield number, dict(json.loads(line))
        else:
            delimiter = "\t" if kind == ".tsv" else _delimiter(text)
            reader = csv.DictReader(
                io.StringIO(text, newline=""), delimiter=delimiter, restkey=_MORE, restval=_FEWER, strict=True
            )
            for row in reader:
                yield reader.line_num, row
    except (ValueError, TypeError, csv.Error) as error:
        raise UserError(f"captions file {path} is not a {kind} table: {error}") from error


def _delimiter(text: str) -> str:
    """What separates the header's fields: the one that yields both columns, else a comma."""
    line = text.partition("\n")[0].rstrip("\r")
    for delimiter in _DELIMITERS:
        header = next(csv.reader([line], delimiter=delimiter), [])
        if all(any(name in header for name in names) for names in _COLUMNS.values()):
            return delimiter
    return ","
