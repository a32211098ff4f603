"""Your own pictures: a folder, however deep, of picture files."""

from __future__ import annotations

import os
from pathlib import Path

from ldm_lightning.data.captions import BESIDE, check_captioned, locate_captions, read_beside, read_captions
from ldm_lightning.data.level_table import LevelTable
from ldm_lightning.data.picture import Picture, open_picture
from ldm_lightning.data.scan import scan, select
from ldm_lightning.errors import UserError, no_such_place

__all__ = ["ImageFolder"]

_EXTENSIONS = (
    *(".avif", ".bmp", ".gif", ".jfif", ".jp2", ".jpe", ".jpeg", ".jpg", ".pbm", ".pgm", ".png", ".pnm", ".ppm"),
    *(".tga", ".tif", ".tiff", ".webp"),
)


def _find(root: Path) -> list[str]:
    """Posix paths of all picture files below ``root``, sorted; hidden names are ignored, links are followed once."""
    found, seen = [], set()
    for folder, below, files in os.walk(root, followlinks=True):
        here = Path(folder)
        below[:] = sorted(name for name in below if not name.startswith("."))
        if (place := here.resolve()) in seen:  # a link that leads to a folder already visited, perhaps round in circles
            below.clear()
            continue
        seen.add(place)
        pictures = (here / file for file in files if not file.startswith("."))
        found += [path.relative_to(root).as_posix() for path in pictures if path.suffix.lower() in _EXTENSIONS]
    return sorted(found)


def _stamp(path: Path) -> str:
    try:
        status = path.stat()
    except OSError:  # a link to nowhere: reading it will say so
        return ""
    return f"{status.st_size}:{status.st_mtime_ns}"


class ImageFolder:
    """All pictures below a folder, in the order of their relative paths.

    When every picture lies in a sub-folder, the first-level sub-folders are its classes. The content hash covers the
    bytes of a file. The folder itself is only read.

    Args:
        root: the folder.
        captions: ``.csv``, ``.tsv`` or ``.jsonl`` file with the columns ``file`` and ``caption`` (or ``file_name`` and
            ``text``), its path relative to ``root``, else to the current folder; or ``.txt`` for a text file beside
            each picture, one caption a line. None for no captions.
        max_bad_fraction: largest share of unreadable pictures, and of pictures that are too small, which is left out
            with a warning; more is an error.
        max_uncaptioned: largest share of pictures without a caption, which are trained on with an empty one and a
            warning; more is an error.
        encoding: of the captions; None for UTF-8, or UTF-16 with its byte order mark.
    """

    def __init__(
        self,
        root: str,
        captions: str | None = None,
        max_bad_fraction: float = 0.01,
        *,
        max_uncaptioned: float = 0.01,
        encoding: str | None = None,
    ) -> None:
        self.root = Path(root).expanduser()
        self.captions_file, self.encoding = captions, encoding
        self.max_bad_fraction, self.max_uncaptioned = max_bad_fraction, max_uncaptioned
        self.has_captions = captions is not None
        self.class_names: tuple[str, ...] = ()
        self.files: list[str] = []
        self._hashes: list[bytes] = []
        self.levels = LevelTable.of([], [])
        self._captions: dict[str, tuple[str, ...]] = {}

    @property
    def name(self) -> str:
        """The folder's own name."""
        return self.root.resolve().name

    def prepare(self, min_size: int = 1) -> None:
        """Find, read and check all pictures.

        Raises:
            UserError: the folder is missing, is a file or holds no pictures; too many pictures are unreadable or
                smaller than ``min_size``; or the captions do not fit the pictures.
        """
        if self.files:
            return
        if not self.root.exists():
            raise no_such_place("data.root", self.root)
        if not self.root.is_dir():
            raise UserError(f"data.root={self.root} is a file; name the folder that holds the pictures")
        found = _find(self.root)
        if not found:
            endings = ", ".join(_EXTENSIONS)
            raise UserError(f"data.root={self.root} holds no pictures; expected files ending in {endings}")
        if self.captions_file is not None:
            self._captions = self._read_captions(self.captions_file, found)
        paths = [self.root / file for file in found]
        place = str(self.root.resolve())
        findings = scan(found, [_stamp(path) for path in paths], lambda i: paths[i].read_bytes(), place)
        kept = select(found, findings, place, min_size, self.max_bad_fraction)
        self.files = [found[i] for i in kept]
        self._hashes = [bytes.fromhex(findings[i].hash) for i in kept]
        self.levels = LevelTable.of(self.files, [findings[i] for i in kept])
        if self.has_captions:
            check_captioned(
                place, self.files, [self._captions.get(file, ()) for file in self.files], self.max_uncaptioned
            )
        if all("/" in file for file in self.files):
            self.class_names = tuple(sorted({file.split("/")[0] for file in self.files}))
        self._labels = {name: label for label, name in enumerate(self.class_names)}

    def _read_captions(self, named: str, found: list[str]) -> dict[str, tuple[str, ...]]:
        if named == BESIDE:
            return read_beside(self.root, found, self.encoding)
        return read_captions(locate_captions(named, self.root), self.root, found, self.encoding)

    def __len__(self) -> int:
        return len(self.files)

    def picture(self, i: int) -> Picture:
        """Picture ``i``, as `ldm_lightning.data.picture.open_picture` returns it.

        Raises:
            UserError: the file has become unreadable.
        """
        path = self.root / self.files[i]
        try:
            return open_picture(path)
        except Exception as error:  # decoders raise anything at all on damaged files
            reason = " ".join(str(error).split())
            raise UserError(f"{path} has become unreadable ({reason}); restore it or start again") from error

    def label(self, i: int) -> int | None:
        """Position of the picture's first-level folder in `class_names`; None when unlabelled."""
        return self._labels[self.files[i].split("/")[0]] if self.class_names else None

    def captions(self, i: int) -> tuple[str, ...]:
        """Captions of the picture; empty where it has none."""
        return self._captions.get(self.files[i], ())

    def content_hash(self, i: int) -> bytes:
        """16 bytes of BLAKE2b over the bytes of the file."""
        return self._hashes[i]

    def split_key(self, i: int) -> bytes:
        """The content hash."""
        return self.content_hash(i)
