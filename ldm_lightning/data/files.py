"""Where pictures and the texts beside them lie: in a folder, or in one archive, which is read where it is.

Members of an archive are read into memory one at a time, by their place in it. Nothing is ever unpacked, so no name in
an archive can lead anywhere, and any number of threads and processes may read at once.
"""

from __future__ import annotations

import os
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import BinaryIO, NamedTuple, Protocol

from ldm_lightning.errors import UserError, no_such_place

__all__ = ["ARCHIVES", "Archive", "Files", "Folder", "open_files"]

_COMPRESSED = (".tgz", ".tbz", ".tbz2", ".txz", ".gz", ".bz2", ".xz", ".zst", ".7z", ".rar")
_LOCAL_HEADER = 30  # bytes in a zip file before a member's name, whose length, and that of what follows, end it
_TAIL = 1 << 16


class Files(Protocol):
    """Files by name: posix paths relative to the whole."""

    @property
    def place(self) -> str:
        """Absolute path of the whole."""
        ...

    @property
    def names(self) -> Sequence[str]:
        """All names, sorted, but for hidden files and those in hidden folders."""
        ...

    def __contains__(self, name: str) -> bool: ...

    def name_of(self, path: Path) -> str | None:
        """Name of the file at an absolute path; None when that is elsewhere."""
        ...

    def stamp(self, name: str) -> str:
        """What changes whenever the content may have changed; empty when there is no such file."""
        ...

    def read(self, name: str) -> bytes:
        """Content of a file.

        Raises:
            OSError: there is none, or it cannot be read.
            ValueError: the archive has changed, or is damaged there.
        """
        ...


def open_files(root: Path) -> Files:
    """The files below the folder ``root``, or in the archive of that name.

    Raises:
        UserError: it is missing, neither a folder nor an archive, or a damaged one.
    """
    if root.is_dir():
        return Folder(root)
    if not root.exists():
        raise no_such_place("data.root", root)
    suffix = root.suffix.lower()
    if suffix in ARCHIVES:
        return Archive(root)
    if suffix in _COMPRESSED:
        raise UserError(
            f"data.root={root} is compressed as a whole: unpack it, or pack its files as .zip or plain .tar"
        )
    raise UserError(f"data.root={root} is a file; name the folder that holds the pictures, or a .zip or .tar of them")


def _stamp(status: os.stat_result) -> str:
    return f"{status.st_size}:{status.st_mtime_ns}"


class Folder:
    """All files below a folder; links to folders are followed once.

    Args:
        root: the folder.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self.place = str(root.resolve())

    @cached_property
    def names(self) -> Sequence[str]:
        """See `Files.names`."""
        return _walk(self.root)

    def __contains__(self, name: str) -> bool:
        return (self.root / name).is_file()

    def name_of(self, path: Path) -> str | None:
        """See `Files.name_of`."""
        bases = (base for base in (self.root.absolute(), Path(self.place)) if path.is_relative_to(base))
        return next((path.relative_to(base).as_posix() for base in bases), None)

    def stamp(self, name: str) -> str:
        """Size and modification time of the file."""
        try:
            return _stamp((self.root / name).stat())
        except OSError:  # a link to nowhere: reading it will say so
            return ""

    def read(self, name: str) -> bytes:
        """See `Files.read`."""
        return (self.root / name).read_bytes()


def _walk(root: Path) -> list[str]:
    found, seen = [], set()
    for folder, below, files in os.walk(root, followlinks=True):
        here = Path(folder)
        below[:] = sorted(name for name in below if not name.startswith("."))
        if (place := here.resolve()) in seen:  # a link that leads to a folder already visited, perhaps round in circles
            below.clear()
            continue
        seen.add(place)
        before = "" if here == root else f"{here.relative_to(root).as_posix()}/"
        found += [before + file for file in files if not file.startswith(".")]
    return sorted(found)


class Archive:
    """The files in a ``.zip`` or an uncompressed ``.tar``. One folder that holds them all is taken for the whole.

    Args:
        path: the archive.

    Raises:
        UserError: it is damaged or cut short, or its members are packed in a way that cannot be read.
    """

    def __init__(self, path: Path) -> None:
        self.path = path.absolute()
        self.place = str(path.resolve())
        self._stamp = _stamp(path.stat())
        try:
            members = ARCHIVES[path.suffix.lower()](path)
        except (OSError, EOFError, tarfile.TarError, zipfile.BadZipFile, NotImplementedError, ValueError) as error:
            raise UserError(f"{path} cannot be read ({error}): get it again, or pack its files anew") from error
        visible = {name: member for name, member in members.items() if not _is_hidden(name)}
        whole = _common_folder(list(visible))
        self._members = {name.removeprefix(whole): visible[name] for name in sorted(visible)}

    @cached_property
    def names(self) -> Sequence[str]:
        """See `Files.names`."""
        return list(self._members)

    def __contains__(self, name: str) -> bool:
        return name in self._members

    def name_of(self, path: Path) -> str | None:
        """See `Files.name_of`: as if the archive were a folder."""
        return path.relative_to(self.place).as_posix() if path.is_relative_to(self.place) else None

    def stamp(self, name: str) -> str:
        """Size and modification time of the archive."""
        return self._stamp

    def read(self, name: str) -> bytes:
        """See `Files.read`."""
        with self.path.open("rb") as file:
            if _stamp(os.fstat(file.fileno())) != self._stamp:
                raise ValueError(f"{self.path} has changed")
            return self._members[name].read(file)


class _Member(Protocol):
    """Where a file lies in an archive."""

    def read(self, file: BinaryIO) -> bytes: ...


class _TarMember(NamedTuple):
    """``size`` bytes from ``start`` on."""

    start: int
    size: int

    def read(self, file: BinaryIO) -> bytes:
        file.seek(self.start)
        return file.read(self.size)


class _ZipMember(NamedTuple):
    """A header at ``start`` and then ``packed`` bytes, which are, or are by deflate, ``size`` bytes."""

    start: int
    packed: int
    size: int
    deflated: bool
    checksum: int

    def read(self, file: BinaryIO) -> bytes:
        file.seek(self.start)
        header = file.read(_LOCAL_HEADER)
        file.seek(sum(struct.unpack("<HH", header[-4:])), os.SEEK_CUR)
        content = file.read(self.packed)
        if self.deflated:
            # No more than one byte beyond what is declared, whatever the packed bytes would swell to.
            content = zlib.decompressobj(-zlib.MAX_WBITS).decompress(content, self.size + 1)
        if len(content) != self.size or zlib.crc32(content) != self.checksum:
            raise ValueError("wrong checksum")
        return content


def _tar_members(path: Path) -> dict[str, _TarMember]:
    members: dict[str, _TarMember] = {}
    with tarfile.open(path, "r:") as archive:
        for info in archive:
            if info.isreg():
                members[_plain(info.name)] = _TarMember(info.offset_data, info.size)
            elif info.islnk() and (other := members.get(_plain(info.linkname))):  # a second name of the same file
                members[_plain(info.name)] = other
        end = archive.offset
    # Where a header is missing or damaged, tarfile stops as at the end, and the rest would be lost without a word.
    with path.open("rb") as file:
        file.seek(end)
        tail = file.read(_TAIL)
    if len(tail) < tarfile.BLOCKSIZE or any(tail):
        raise ValueError(f"it has no end, or goes on behind it, after {len(members)} files")
    return members


def _zip_members(path: Path) -> dict[str, _ZipMember]:
    members = {}
    with zipfile.ZipFile(path) as archive:
        for info in archive.infolist():
            if info.is_dir():
                continue
            if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED) or info.flag_bits & 1:
                raise ValueError(f"{info.filename} is encrypted, or packed by another method than deflate")
            deflated = info.compress_type == zipfile.ZIP_DEFLATED
            facts = info.header_offset, info.compress_size, info.file_size, deflated, info.CRC
            members[_plain(info.filename.replace("\\", "/"))] = _ZipMember(*facts)
    return members


ARCHIVES: dict[str, Callable[[Path], Mapping[str, _Member]]] = {".tar": _tar_members, ".zip": _zip_members}


def _plain(name: str) -> str:
    return "/".join(part for part in name.split("/") if part not in ("", "."))


def _is_hidden(name: str) -> bool:
    """Whether the name, or that of a folder, begins with a point; ``__MACOSX`` holds what macOS adds."""
    return any(part.startswith(".") or part == "__MACOSX" for part in name.split("/"))


def _common_folder(names: Sequence[str]) -> str:
    """The one folder that all files lie in, with a slash; empty where there is none."""
    tops = {name.partition("/")[:2] for name in names}
    return "".join(tops.pop()) if len(tops) == 1 and all("/" in name for name in names) else ""
