"""Captions: texts in a table beside the pictures, or in a file beside each; several a picture are meant.

A table is ``.csv``, ``.tsv`` (with a header line) or ``.jsonl`` and has the columns ``file`` and ``caption``, or
``file_name`` and ``text`` as in the ``metadata.csv`` of Hugging Face. Of several captions of a picture, training draws
one anew in every epoch, and measuring takes the first.
"""

from __future__ import annotations

import csv
import io
import json
import math
import warnings
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from ldm_lightning.data.files import Files
from ldm_lightning.data.scan import report
from ldm_lightning.errors import UserError, nearest

__all__ = ["BESIDE", "check_captioned", "in_current_folder", "read_beside", "read_captions", "texts_of"]

BESIDE = (".txt", ".json")  # instead of a table's name: a file beside each picture
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
    if isinstance(value, Sequence) and all(text is None or isinstance(text, str) for text in value):
        return tuple(text for text in value if text and text.strip())
    raise UserError(f"{where} holds no caption but {value!r}: give a text, or a list of texts")


def in_current_folder(captions: str, files: Files) -> Path | None:
    """The table that ``captions`` names from the current folder, if there is one and none among ``files``."""
    here = Path(captions).expanduser().absolute()
    return here if captions not in BESIDE and here.is_file() and captions not in files else None


def _table(captions: str, files: Files) -> tuple[Path, bytes]:
    """Place and content of the table that ``captions`` names: among the files, else from the current folder."""
    below, here = Path(files.place) / captions, Path(captions).expanduser().absolute()
    try:
        if captions not in files:
            return here, here.read_bytes()
        content = files.read(captions)
        if here.is_file() and not Path(captions).is_absolute() and here.read_bytes() != content:
            warnings.warn(
                f"captions are read from {below}, which differs from {here}: for the latter, give its absolute path",
                stacklevel=2,
            )
        return below, content
    except FileNotFoundError:
        raise UserError(
            f"captions file {captions} is neither below data.root ({below}) nor in the current folder ({here}): check "
            "data.captions"
        ) from None
    except (OSError, ValueError) as error:
        raise UserError(f"captions file {captions} cannot be read: {error}; check data.captions") from error


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
    captions: str, files: Files, pictures: Collection[str], encoding: str | None = None
) -> dict[str, tuple[str, ...]]:
    """Read a table of captions.

    Args:
        captions: the table, relative to the pictures' root, else to the current folder.
        files: what lies at that root.
        pictures: names of the pictures. The table may name them relative to the root or to its own folder, also with
            backslashes, or by absolute paths.
        encoding: of the table; None for UTF-8, or UTF-16 with its byte order mark.

    Returns:
        Captions by picture; pictures that the table leaves out are missing.

    Raises:
        UserError: the file is unreadable, holds no rows, lacks a column, has rows that do not fit its header, or
            names a picture that does not exist.
    """
    pictures, found = set(pictures), dict[str, tuple[str, ...]]()
    path, content = _table(captions, files)
    beside = files.name_of(path.parent) or ""
    columns: dict[str, str] = {}
    for number, row in _rows(path, content, encoding):
        place = f"{path}:{number}"
        columns = columns or {role: _column(role, row, place) for role in _COLUMNS}
        if _MORE in row:
            raise UserError(f"{place} has more fields than the header: put a caption that holds a comma in quotes")
        if _FEWER in row.values():
            raise UserError(f"{place} has fewer fields than the header: complete it, or put line breaks in quotes")
        if missing := [name for name in columns.values() if name not in row]:
            raise UserError(f"{place} has no '{missing[0]}', which the first row has: give null where there is none")
        named = str(row[columns["file"]])
        picture = next((name for name in _meant(named, files, beside) if name in pictures), None)
        if picture is None:
            raise UserError(f"{place} names no picture: '{named}'{nearest(named, pictures)}")
        texts = texts_of(row[columns["caption"]], f"{place}, column '{columns['caption']}',")
        found[picture] = (*found.get(picture, ()), *texts)
    if not found:
        raise UserError(f"captions file {path} holds no captions below its header: add rows, or leave it out")
    return found


def read_beside(
    ending: str, files: Files, pictures: Collection[str], encoding: str | None = None
) -> dict[str, tuple[str, ...]]:
    """Read the file beside each picture that has one.

    Args:
        ending: ``.txt``, of which every line that is not blank is a caption, or ``.json``, an object whose ``caption``
            or ``text`` is one text or a list of them.
        files: what lies at the pictures' root.
        pictures: their names.
        encoding: of the files; None for UTF-8, or UTF-16 with its byte order mark.

    Raises:
        UserError: a file is unreadable, or no picture has one.
    """
    found, known = {}, set(files.names)
    for picture in pictures:
        name = picture.rpartition(".")[0] + ending
        if name in known:
            place = Path(files.place) / name
            try:
                content = files.read(name)
            except (OSError, ValueError) as error:
                raise UserError(f"captions file {place} cannot be read: {error}") from error
            text = _text(place, content, encoding)
            lines = [line.strip() for line in _lines(text)]
            found[picture] = texts_of(lines if ending == ".txt" else _in_object(text, place), str(place))
    if not found:
        raise UserError(f"no picture in {files.place} has a {ending} file beside it: check data.root and data.captions")
    return found


def _in_object(text: str, place: Path) -> Any:
    """What a JSON object gives as captions; None for nothing."""
    try:
        row = json.loads(text)
    except ValueError as error:
        raise UserError(f"{place} is no JSON: {error}") from error
    if not isinstance(row, dict):
        raise UserError(f"{place} holds no object but {row!r:.40}")
    return next((row[name] for name in _COLUMNS["caption"] if name in row), None)


def _column(role: str, row: Mapping[str, Any], place: str) -> str:
    """The name that the column of files or of captions has in this table."""
    names = _COLUMNS[role]
    found = next((name for name in names if name in row), None)
    if found is None:
        there, choices = [str(name) for name in row if name != _MORE], " or ".join(f"'{name}'" for name in names)
        listed = ", ".join(there) or "an empty header"
        raise UserError(f"{place} has no column {choices}, only {listed}{nearest(names[0], there)}")
    return found


def _meant(named: str, files: Files, beside: str) -> Iterator[str]:
    """Names that a table in the folder ``beside`` may mean by ``named``."""
    for spelling in (named, named.replace("\\", "/")):
        path = Path(spelling)
        if path.is_absolute():
            yield files.name_of(path) or ""
        else:
            yield path.as_posix()
            yield (PurePosixPath(beside) / spelling).as_posix()


def _text(path: Path, content: bytes, encoding: str | None) -> str:
    """The text, whatever its encoding, without a byte order mark."""
    marked = content.startswith((b"\xff\xfe", b"\xfe\xff"))
    try:
        text = content.decode(encoding or ("utf-16" if marked else "utf-8"))
        if "\0" in text:
            raise UnicodeError("it holds zeros, as UTF-16 without its byte order mark does")
    except (UnicodeError, LookupError) as error:
        raise UserError(
            f"captions file {path} is not in {encoding or 'UTF-8'} ({error}): name its encoding, such as "
            "data.source.encoding=latin-1 or utf-16-le"
        ) from error
    return text.removeprefix("\ufeff")


def _lines(text: str) -> list[str]:
    """Lines as editors show them; what else `str.splitlines` takes for an end may stand inside a caption."""
    return text.replace("\r\n", "\n").replace("\r", "\n").split("\n")


def _rows(path: Path, content: bytes, encoding: str | None) -> Iterator[tuple[int, Mapping[str, Any]]]:
    """Line number and columns of every row."""
    kind = path.suffix.lower()
    if kind not in _TABLES:
        raise UserError(f"captions file {path} is none of {', '.join(_TABLES)}")
    text = _text(path, content, encoding)
    try:
        if kind == ".jsonl":
            for number, line in enumerate(_lines(text), start=1):
                if line.strip():
                    row = json.loads(line)
                    if not isinstance(row, dict):
                        raise ValueError(f"line {number} holds no object")
                    yield number, row
        else:
            delimiter = "\t" if kind == ".tsv" else _delimiter(text)
            reader = csv.DictReader(
                io.StringIO(text, newline=""), delimiter=delimiter, restkey=_MORE, restval=_FEWER, strict=True
            )
            header = list(reader.fieldnames or ())
            for name in (name for names in _COLUMNS.values() for name in names if header.count(name) > 1):
                raise ValueError(f"two columns are called '{name}': give several captions in several rows")
            for row in reader:
                yield reader.line_num, row
    except (ValueError, TypeError, csv.Error) as error:
        raise UserError(f"captions file {path} is not a {kind} table: {error}") from error


def _delimiter(text: str) -> str:
    """What separates the header's fields: the one that yields both columns, else a comma."""
    line = _lines(text)[0]
    for delimiter in _DELIMITERS:
        header = next(csv.reader([line], delimiter=delimiter), [])
        if all(any(name in header for name in names) for names in _COLUMNS.values()):
            return delimiter
    return ","
