"""Pictures from a Hugging Face data set: on the hub, or in local files and folders of its formats."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ldm_lightning.data.captions import check_captioned, texts_of
from ldm_lightning.data.classes import class_of, numbered
from ldm_lightning.data.level_table import LevelTable
from ldm_lightning.data.picture import Picture, open_picture
from ldm_lightning.data.scan import report, scan, select
from ldm_lightning.data.tables import load_table
from ldm_lightning.errors import UserError, nearest

__all__ = ["HuggingFace"]


class HuggingFace:
    """A data set with a column of pictures; needs the extra ``data``.

    The content hash covers the encoded bytes of a picture.

    Args:
        path: name on the hub, a local folder of files or as written by ``save_to_disk``, or one parquet or arrow file,
            which then is the ``split``.
        subset: configuration of the data set, for those which have several.
        split: split of the data set to take.
        image_column: column of encoded pictures.
        label_column: column of classes (class labels, integers, whole numbers or strings); None for unlabelled.
        caption_column: column of texts, or of lists of texts; None for no captions.
        max_bad_fraction: largest share of unreadable pictures, of pictures that are too small, and of rows without a
            class, which is left out with a warning; more is an error.
        max_uncaptioned: largest share of pictures without a caption, which are trained on with an empty one and a
            warning; more is an error.
    """

    def __init__(
        self,
        path: str,
        *,
        subset: str | None = None,
        split: str = "train",
        image_column: str = "image",
        label_column: str | None = "label",
        caption_column: str | None = None,
        max_bad_fraction: float = 0.01,
        max_uncaptioned: float = 0.01,
    ) -> None:
        self.path, self.subset, self.split = path, subset, split
        self.image_column, self.label_column, self.caption_column = image_column, label_column, caption_column
        self.max_bad_fraction, self.max_uncaptioned = max_bad_fraction, max_uncaptioned
        self.name = Path(path).name
        self.has_captions = caption_column is not None
        self.class_names: tuple[str, ...] = ()
        self._rows: list[int] = []
        self._hashes: list[bytes] = []
        self.levels = LevelTable.of([], [])
        self._labels: list[int] = []
        self._captions: list[tuple[str, ...]] = []

    def prepare(self, min_size: int = 1) -> None:
        """Load the data set and check all pictures.

        Raises:
            UserError: ``datasets`` is not installed, the data set or a column cannot be found, a column has the wrong
                kind of values, or too many pictures are unreadable, smaller than ``min_size`` or without a class.
        """
        if self._rows:
            return
        dataset = load_table(self.path, self.subset, self.split)
        for option in ("image_column", "label_column", "caption_column"):
            column = getattr(self, option)
            if column is not None and column not in dataset.column_names:
                none = ": name one, or null for none" if option == "label_column" else ""
                raise UserError(
                    f"data.source.{option}={column} is no column of {self.path}, which has "
                    f"{', '.join(dataset.column_names)}{none}{nearest(column, dataset.column_names)}"
                )
        self._pictures = self._encoded_pictures(dataset)
        names = [f"row {i}" for i in range(len(dataset))]
        findings = scan(names, [dataset._fingerprint] * len(names), self._bytes, f"{self.path}:{dataset._fingerprint}")
        rows = select(names, findings, self.path, min_size, self.max_bad_fraction)
        self._rows = rows if self.label_column is None else self._read_labels(dataset, self.label_column, rows)
        self._hashes = [bytes.fromhex(findings[row].hash) for row in self._rows]
        self.levels = LevelTable.of([names[row] for row in self._rows], [findings[row] for row in self._rows])
        if self.caption_column is not None:
            self._read_captions(dataset, self.caption_column)

    def _encoded_pictures(self, dataset: Any) -> Any:
        """The data set reduced to its pictures, not decoded."""
        import datasets

        try:
            pictures = dataset.select_columns([self.image_column])
            return pictures.cast_column(self.image_column, datasets.Image(decode=False))
        except Exception as error:  # pyarrow's own family of conversion errors
            kind = dataset.features[self.image_column]
            raise UserError(f"data.source.image_column={self.image_column} holds no pictures but {kind}") from error

    def _bytes(self, row: int) -> bytes:
        encoded: dict[str, Any] = self._pictures[row][self.image_column]
        content: bytes | None = encoded["bytes"]
        return Path(encoded["path"]).read_bytes() if content is None else content

    def _read_labels(self, dataset: Any, column: str, rows: list[int]) -> list[int]:
        """Number the classes of ``rows``, and return those rows that have one.

        Raises:
            UserError: a value is no class, or too many are missing.
        """
        values, declared = list(dataset[column]), getattr(dataset.features[column], "names", None)
        where = f"data.source.label_column={column} of {self.path}, row"
        classes = {row: class_of(values[row], f"{where} {row},") for row in rows}
        if declared:  # a class label of -1 is how unlabelled splits are published
            classes = {row: value if value in range(len(declared)) else None for row, value in classes.items()}
        without = [f"row {row} ({values[row]!r})" for row in rows if classes[row] is None]
        mend = (
            "choose another split or column, set data.source.label_column=null, or raise data.source.max_bad_fraction"
        )
        report(self.path, len(rows), without, self.max_bad_fraction, what=f"have no class in {column}", mend=mend)
        found = {row: value for row, value in classes.items() if value is not None}
        self.class_names, self._labels = numbered(list(found.values()))
        if declared:
            self.class_names, self._labels = tuple(declared), [int(value) for value in found.values()]
        return list(found)

    def _read_captions(self, dataset: Any, column: str) -> None:
        values = list(dataset[column])
        self._captions = [texts_of(values[row], f"row {row}, column '{column}' of {self.path}") for row in self._rows]
        names = [f"row {row}" for row in self._rows]
        check_captioned(self.path, names, self._captions, self.max_uncaptioned)

    def __len__(self) -> int:
        return len(self._rows)

    def picture(self, i: int) -> Picture:
        """Picture ``i``, as `ldm_lightning.data.picture.open_picture` returns it.

        Raises:
            UserError: the picture has become unreadable.
        """
        row = self._rows[i]
        try:
            return open_picture(self._bytes(row))
        except Exception as error:  # decoders raise anything at all on damaged files
            reason = " ".join(str(error).split())
            raise UserError(f"row {row} of {self.path} has become unreadable ({reason}); start again") from error

    def label(self, i: int) -> int | None:
        """Position of the picture's class in `class_names`; None when unlabelled."""
        return self._labels[i] if self._labels else None

    def captions(self, i: int) -> tuple[str, ...]:
        """Texts of the caption column; empty where it has none."""
        return self._captions[i] if self._captions else ()

    def content_hash(self, i: int) -> bytes:
        """16 bytes of BLAKE2b over the encoded picture."""
        return self._hashes[i]

    def split_key(self, i: int) -> bytes:
        """The content hash."""
        return self.content_hash(i)
