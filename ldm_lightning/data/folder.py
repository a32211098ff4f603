"""Your own pictures: a folder, however deep, of picture files, or an archive of them."""

from __future__ import annotations

from pathlib import Path, PurePosixPath

from ldm_lightning.data.captions import BESIDE, check_captioned, read_beside, read_captions
from ldm_lightning.data.classes import numbered
from ldm_lightning.data.files import Files, open_files
from ldm_lightning.data.level_table import LevelTable
from ldm_lightning.data.picture import Picture, open_picture
from ldm_lightning.data.scan import report, scan, select
from ldm_lightning.errors import UserError

__all__ = ["ImageFolder"]

_EXTENSIONS = (
    *(".avif", ".bmp", ".gif", ".jfif", ".jp2", ".jpe", ".jpeg", ".jpg", ".pbm", ".pgm", ".png", ".pnm", ".ppm"),
    *(".tga", ".tif", ".tiff", ".webp"),
)
_CLASS = ".cls"  # as in shards of webdataset


def _mend(files: Files) -> str:
    """What to do about files of which none is a picture."""
    if any(name.endswith((".arrow", ".parquet")) for name in files.names):
        return f"it holds tables, which are read by data=huggingface data.source.path={files.place}"
    return f"expected files ending in {', '.join(_EXTENSIONS)}"


class ImageFolder:
    """All pictures below a folder, or in an archive, in the order of their relative paths.

    Files ``NAME.cls`` beside pictures hold their classes, as numbers or texts; without any, when every picture lies in
    a sub-folder, the first-level sub-folders are its classes. The content hash covers the bytes of a file. Folder and
    archive are only read.

    Args:
        root: the folder, or a ``.zip`` or uncompressed ``.tar``; one folder in an archive that holds all its files is
            taken for the whole.
        captions: ``.csv``, ``.tsv`` or ``.jsonl`` file with the columns ``file`` and ``caption`` (or ``file_name`` and
            ``text``), its path relative to ``root``, else to the current folder; or ``.txt`` for a text file beside
            each picture, one caption a line; or ``.json`` likewise, an object with ``caption`` or ``text``. None for no
            captions.
        max_bad_fraction: largest share of unreadable pictures, of pictures that are too small, and of pictures without
            the class that others have beside them, which is left out with a warning; more is an error.
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
        self._labels: list[int] = []
        self.levels = LevelTable.of([], [])
        self._captions: dict[str, tuple[str, ...]] = {}

    @property
    def name(self) -> str:
        """The folder's own name."""
        return self.root.resolve().name

    def prepare(self, min_size: int = 1) -> None:
        """Find, read and check all pictures.

        Raises:
            UserError: the folder is missing, is another file than an archive or holds no pictures; too many pictures
                are unreadable, smaller than ``min_size`` or without a class; or the captions do not fit the pictures.
        """
        if self.files:
            return
        self._files = files = open_files(self.root)
        found = [name for name in files.names if PurePosixPath(name).suffix.lower() in _EXTENSIONS]
        if not found:
            raise UserError(f"data.root={self.root} holds no pictures; {_mend(files)}")
        if self.captions_file is not None:
            read = read_beside if self.captions_file in BESIDE else read_captions
            self._captions = read(self.captions_file, files, found, self.encoding)
        findings = scan(found, [files.stamp(name) for name in found], lambda i: files.read(found[i]), files.place)
        kept = select(found, findings, files.place, min_size, self.max_bad_fraction)
        classes = self._read_classes([found[i] for i in kept])
        kept = [i for i in kept if not classes or found[i] in classes]
        self.files = [found[i] for i in kept]
        self._hashes = [bytes.fromhex(findings[i].hash) for i in kept]
        self.levels = LevelTable.of(self.files, [findings[i] for i in kept])
        if self.has_captions:
            captions = [self._captions.get(file, ()) for file in self.files]
            check_captioned(files.place, self.files, captions, self.max_uncaptioned)
        if classes:
            self.class_names, self._labels = numbered([classes[file] for file in self.files])

    def _read_classes(self, files: list[str]) -> dict[str, int | str]:
        """Classes by picture, from what lies beside them or from the folders they lie in; empty where there are none.

        Raises:
            UserError: too many pictures lack the file that holds the class of the others.
        """
        names = {file: file.rpartition(".")[0] + _CLASS for file in files}
        known = set(self._files.names)
        if known.isdisjoint(names.values()):
            return {file: file.split("/")[0] for file in files} if all("/" in file for file in files) else {}
        texts = {file: self._class_beside(name) if name in known else "" for file, name in names.items()}
        without = [file for file, text in texts.items() if not text]
        mend = f"give each a {_CLASS} file, or raise data.source.max_bad_fraction"
        report(self._files.place, len(files), without, self.max_bad_fraction, what="have no class", mend=mend)
        written = {file: text for file, text in texts.items() if text}
        if all(text.isascii() and text.isdigit() for text in written.values()):
            return {file: int(text) for file, text in written.items()}
        return dict(written)

    def _class_beside(self, name: str) -> str:
        try:
            return self._files.read(name).decode().strip()
        except (OSError, ValueError) as error:
            raise UserError(f"{self._files.place}/{name} cannot be read: {error}") from error

    def __len__(self) -> int:
        return len(self.files)

    def picture(self, i: int) -> Picture:
        """Picture ``i``, as `ldm_lightning.data.picture.open_picture` returns it.

        Raises:
            UserError: the file has become unreadable.
        """
        file = self.files[i]
        try:
            return open_picture(self._files.read(file))
        except Exception as error:  # decoders raise anything at all on damaged files
            reason = " ".join(str(error).split())
            raise UserError(
                f"{self.root / file} has become unreadable ({reason}); restore it or start again"
            ) from error

    def label(self, i: int) -> int | None:
        """Position of the picture's class in `class_names`; None when unlabelled."""
        return self._labels[i] if self.class_names else None

    def captions(self, i: int) -> tuple[str, ...]:
        """Captions of the picture; empty where it has none."""
        return self._captions.get(self.files[i], ())

    def content_hash(self, i: int) -> bytes:
        """16 bytes of BLAKE2b over the bytes of the file."""
        return self._hashes[i]

    def split_key(self, i: int) -> bytes:
        """The content hash."""
        return self.content_hash(i)
