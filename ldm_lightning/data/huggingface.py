"""Pictures from a Hugging Face data set: on the hub, or local parquet files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ldm_lightning.data.captions import check_captioned, texts_of
from ldm_lightning.data.level_table import LevelTable
from ldm_lightning.data.picture import Picture, open_picture
from ldm_lightning.data.scan import scan, select
from ldm_lightning.errors import UserError, nearest, needs_extra, no_such_place

__all__ = ["HuggingFace"]


class HuggingFace:
    """A data set with a column of pictures; needs the extra ``data``.

    The content hash covers the encoded bytes of a picture.

    Args:
        path: name on the hub, a local folder, or one parquet file, which then is the ``split``.
        subset: configuration of the data set, for those which have several.
        split: split of the data set to take.
        image_column: column of encoded pictures.
        label_column: column of classes (class labels, integers or strings); None for unlabelled.
        caption_column: column of texts, or of lists of texts; None for no captions.
        max_bad_fraction: largest share of unreadable pictures, and of pictures that are too small, which is left out
            with a warning; more is an error.
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
                kind of values, or too many pictures are unreadable or smaller than ``min_size``.
        """
        if self._rows:
            return
        dataset = self._load()
        for option in ("image_column", "label_column", "caption_column"):
            column = getattr(self, option)
            if column is not None and column not in dataset.column_names:
                raise UserError(
                    f"data.source.{option}={column} is no column of {self.path}, which has "
                    f"{', '.join(dataset.column_names)}{nearest(column, dataset.column_names)}"
                )
        self._pictures = self._encoded_pictures(dataset)
        names = [f"row {i}" for i in range(len(dataset))]
        findings = scan(names, [dataset._fingerprint] * len(names), self._bytes, f"{self.path}:{dataset._fingerprint}")
        self._rows = select(names, findings, self.path, min_size, self.max_bad_fraction)
        self._hashes = [bytes.fromhex(findings[row].hash) for row in self._rows]
        self.levels = LevelTable.of([names[row] for row in self._rows], [findings[row] for row in self._rows])
        if self.label_column is not None:
            self._read_labels(dataset, self.label_column)
        if self.caption_column is not None:
            self._read_captions(dataset, self.caption_column)

    def _load(self) -> Any:
        try:
            import datasets
        except ImportError as error:
            raise needs_extra("datasets", "data") from error
        if self.path.startswith((".", "/", "~")) and not Path(self.path).exists():
            raise no_such_place("data.source.path", self.path)
        try:
            if Path(self.path).is_file():
                return datasets.load_dataset("parquet", data_files={self.split: self.path}, split=self.split)
            # Before version 4, a data set could bring a script that is run; later ones take the argument and run none.
            return datasets.load_dataset(self.path, self.subset, split=self.split, trust_remote_code=False)
        except Exception as error:  # network, cache, format and naming errors come in dozens of types
            reason = " ".join(str(error).split())
            raise UserError(
                f"'{self.path}' could not be loaded ({reason}); check data.source.path, subset and split"
            ) from error

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

    def _read_labels(self, dataset: Any, column: str) -> None:
        values = list(dataset[column])
        values = [values[row] for row in self._rows]
        declared = getattr(dataset.features[column], "names", None)
        for row, value in zip(self._rows, values, strict=True):
            # A class label of -1 is how unlabelled splits are published.
            if not isinstance(value, int | str) or (declared and value not in range(len(declared))):
                raise UserError(
                    f"data.source.label_column={column} of {self.path} has no class in row {row} but {value!r}: choose "
                    "another split or column, or set data.source.label_column=null"
                )
        classes = list(range(len(declared))) if declared else sorted(set(values))
        labels = {value: label for label, value in enumerate(classes)}
        self.class_names = tuple(declared or map(str, classes))
        self._labels = [labels[value] for value in values]

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
