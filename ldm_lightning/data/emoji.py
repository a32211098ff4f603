"""Emoji: about 3,800 small colour pictures with captions, from an npm package such as ``emoji-datasource-google``.

The package (Henderson, "emoji-data") holds every picture as ``img/VENDOR/64/NAME.png`` with transparency, which is laid
on white, and ``emoji.json``, which names them. A caption is the name and, where there is one, the tone of the skin; the
class is the category, as on the keyboard of a telephone.

Many pictures differ only in the tone of the skin. All tones of an emoji fall on the same side of a split, else a model
would be tested on what it has all but seen.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple

from ldm_lightning.data.folder import ImageFolder
from ldm_lightning.data.picture import Picture
from ldm_lightning.errors import UserError, nearest

__all__ = ["Emoji"]

_TONES = {"1F3FB": "light", "1F3FC": "medium-light", "1F3FD": "medium", "1F3FE": "medium-dark", "1F3FF": "dark"}
_MEND = (
    "get the package by 'npm pack emoji-datasource-google', unpack it by 'tar xzf emoji-datasource-google-*.tgz', and "
    "set data.root=package"
)


class _Entry(NamedTuple):
    """What the table says of one picture; ``base`` is the file of the same emoji without a tone."""

    caption: str
    category: str
    base: str


def _read_table(path: Path) -> dict[str, _Entry]:
    """Entries by file name."""
    try:
        rows: list[dict[str, Any]] = json.loads(path.read_text(encoding="utf-8"))
        entries = {}
        for row in rows:
            name, category, base = row["name"].lower(), row["category"], row["image"]
            entries[base] = _Entry(name, category, base)
            for tones, variation in row.get("skin_variations", {}).items():
                tone = " and ".join(_TONES[code] for code in tones.split("-"))
                entries[variation["image"]] = _Entry(f"{name}, {tone} skin tone", category, base)
    except FileNotFoundError:
        raise UserError(f"data.root={path.parent} holds no {path.name}: {_MEND}") from None
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{path} is damaged ({type(error).__name__}: {error}): {_MEND}") from error
    return entries


def _vendor(root: Path, vendor: str | None) -> str:
    """The vendor asked for, or the only one."""
    found = sorted(folder.parent.name for folder in (root / "img").glob("*/64"))
    if vendor is None and len(found) == 1:
        return found[0]
    if not found:
        raise UserError(f"data.root={root} holds no pictures in img/VENDOR/64: {_MEND}")
    if vendor not in found:
        hint = nearest(vendor, found) if vendor else ""
        raise UserError(f"data.source.vendor={vendor or 'null'} is none of {', '.join(found)}{hint}")
    return vendor


class Emoji:
    """The 64-pixel pictures of an unpacked package ``emoji-datasource-VENDOR``.

    Args:
        root: the package's folder, which holds ``emoji.json``.
        vendor: whose pictures, when there are several; None for the only ones.
    """

    has_captions = True

    def __init__(self, root: str | None, vendor: str | None = None) -> None:
        self.root, self.vendor = root, vendor
        self.class_names: tuple[str, ...] = ()
        self.name = "emoji"
        self._entries: list[_Entry] = []

    def prepare(self, min_size: int = 1) -> None:
        """Read the table and check all pictures.

        Raises:
            UserError: no folder is named, or it is not such a package; or see `ImageFolder.prepare`.
        """
        if self._entries:
            return
        if self.root is None:
            raise UserError(f"data.root names no emoji: {_MEND}")
        root = Path(self.root).expanduser()
        if not root.is_dir():
            raise UserError(f"data.root={root} is no folder: {_MEND}")
        table, vendor = _read_table(root / "emoji.json"), _vendor(root, self.vendor)
        self._pictures = ImageFolder(str(root / "img" / vendor / "64"))
        self._pictures.prepare(min_size)
        files = self._pictures.files
        # Pictures beside the table belong to nothing; there are none in the published packages.
        self._places = [place for place, file in enumerate(files) if file in table]
        self._entries = [table[files[place]] for place in self._places]
        self._place_of = {file: place for place, file in enumerate(files)}
        self.class_names = tuple(sorted({entry.category for entry in self._entries}))
        self.name = f"emoji of {vendor}"

    def __len__(self) -> int:
        return len(self._entries)

    def picture(self, i: int) -> Picture:
        """Picture ``i``, 64 x 64 on white.

        Raises:
            UserError: the file has become unreadable.
        """
        return self._pictures.picture(self._places[i])

    def label(self, i: int) -> int | None:
        """Position of the picture's category in `class_names`."""
        return self.class_names.index(self._entries[i].category)

    def captions(self, i: int) -> tuple[str, ...]:
        """One, such as "waving hand sign, medium-dark skin tone"."""
        return (self._entries[i].caption,)

    def content_hash(self, i: int) -> bytes:
        """16 bytes of BLAKE2b over the bytes of the file."""
        return self._pictures.content_hash(self._places[i])

    def split_key(self, i: int) -> bytes:
        """The content hash of the same emoji without a tone, so that all tones stay together."""
        place = self._place_of.get(self._entries[i].base, self._places[i])
        return self._pictures.content_hash(place)
