"""Tables of pictures in the formats of Hugging Face: a name on the hub, or files and folders of ``datasets``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ldm_lightning.data.files import ARCHIVES
from ldm_lightning.errors import UserError, nearest, needs_extra, no_such_place

__all__ = ["load_table"]

_FORMATS = {".arrow": "arrow"}  # of a single file; any other is tried as parquet
_STATE, _SPLITS = "state.json", "dataset_dict.json"  # what ``Dataset`` and ``DatasetDict`` leave by ``save_to_disk``


def load_table(path: str, subset: str | None, split: str) -> Any:
    """Load one split of a data set as a ``datasets.Dataset``. No script that comes with it is run.

    Args:
        path: name on the hub, a local folder (of files, or as ``save_to_disk`` leaves it), or a parquet or arrow file.
        subset: configuration of the data set, for those which have several.
        split: split to take; a single file, and a folder of a saved ``Dataset``, are that split whatever its name.

    Raises:
        UserError: ``datasets`` is not installed, or there is no such data set or split.
    """
    try:
        import datasets
    except ImportError as error:
        raise needs_extra("datasets", "data") from error
    place = Path(path).expanduser()
    if path.startswith((".", "/", "~")) and not place.exists():
        raise no_such_place("data.source.path", path)
    if place.is_file() and place.suffix.lower() in ARCHIVES:
        raise UserError(f"data.source.path={path} is an archive: use data=image_folder data.root={path}")
    saved = _saved(place, split)
    try:
        if saved is not None:
            return datasets.load_from_disk(str(saved)).with_format(None)
        if place.is_file():
            kind = _FORMATS.get(place.suffix.lower(), "parquet")
            return datasets.load_dataset(kind, data_files={split: str(place)}, split=split)
        # Before version 4, a data set could bring a script that is run; later ones take the argument and run none.
        local = str(place) if place.exists() else path
        return datasets.load_dataset(local, subset, split=split, trust_remote_code=False)
    except Exception as error:  # network, cache, format and naming errors come in dozens of types
        reason = " ".join(str(error).split())
        raise UserError(f"'{path}' could not be loaded ({reason}); check data.source.path, subset and split") from error


def _saved(place: Path, split: str) -> Path | None:
    """The folder of a saved ``Dataset`` at ``place``, or of a ``DatasetDict`` there the split; None for other data.

    Raises:
        UserError: there is no such split.
    """
    if (place / _STATE).is_file():
        return place
    if not (place / _SPLITS).is_file():
        return None
    try:
        splits = list(map(str, json.loads((place / _SPLITS).read_text(encoding="utf-8"))["splits"]))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{place / _SPLITS} is damaged ({error}): save the data set again") from error
    if split not in splits:
        raise UserError(f"data.source.split={split} is none of {', '.join(splits)} in {place}{nearest(split, splits)}")
    return place / split
