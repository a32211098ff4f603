"""Folders of drawn pictures: one drawing each, of which any number is there, and which any command may go on with.

A picture is a function of its number and of what the record calls ``protocol``. How many there are, in which batches
they were drawn and what the grid shows is not part of it. But matrix products of other shapes round differently, so the
record also tells which pictures were drawn together: what is lost is drawn in its old company, and is the same to the
bit.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from omegaconf import DictConfig
from PIL import Image
from torch import Tensor

from ldm_lightning.callbacks.picture_grid import enlarged, png, tile
from ldm_lightning.errors import UserError
from ldm_lightning.experiment.run_folder import output_folder
from ldm_lightning.output import RECORD, Output

__all__ = ["GRID", "Drawing", "find_folder"]

GRID = "grid.png"
_PLACES = ("run", "step", "sampler")  # of the protocol, for people: what decides stands in other words beside them


def find_folder(config: DictConfig, protocol: Mapping[str, Any]) -> Path:
    """Where the drawing belongs: ``output=``, else ``RUN/samples/seedS``, or ``seedS-2`` ... if that holds another.

    Raises:
        UserError: nothing can be written there.
    """
    default = Path(config.run) / "samples" / f"seed{config.seed}"
    if config.output is not None:
        return output_folder(config.output, default)
    for k in itertools.count(1):
        folder = default if k == 1 else default.with_name(f"{default.name}-{k}")
        if not (differs := _differences(folder, protocol)):
            break
        print(f"{folder} is kept: it holds another drawing ({'; '.join(differs)})")
    return output_folder(None, folder)


def _differences(folder: Path, protocol: Mapping[str, Any]) -> list[str]:
    """In what the drawing in ``folder`` is another, a line each."""
    try:
        before = _protocol(Output(folder))
        if before is None:
            return [] if not folder.exists() or _is_empty(folder) else ["of unknown origin"]
    except UserError:
        return ["of unknown origin"]
    changed = [key for key, value in protocol.items() if key not in _PLACES and before.get(key) != value]
    return [f"{key}: {before.get(key)} -> {protocol[key]}" for key in changed]


def _is_empty(folder: Path) -> bool:
    """Whether nothing but an empty record and hidden files, such as a lock, lies in a folder."""
    return folder.is_dir() and all(path.name.startswith(".") or path.name == RECORD for path in folder.iterdir())


def _protocol(output: Output) -> dict[str, Any] | None:
    return next((note["protocol"] for note in output.notes if "protocol" in note), None)


class Drawing:
    """The pictures of one protocol in a folder, which is locked for whoever saves.

    Args:
        folder: where they lie, or will.
        protocol: what decides a picture of a given number.

    Raises:
        UserError: the folder holds another drawing; the message shows what differs.
    """

    def __init__(self, folder: Path, protocol: Mapping[str, Any]) -> None:
        self.output, self.protocol = Output(folder), protocol
        self._begun = _protocol(self.output) is not None
        if self._begun and (differs := _differences(folder, protocol)):
            raise UserError(f"{folder} holds another drawing ({'; '.join(differs)}): choose another output=...")
        self._batches = [tuple(note["batch"]) for note in self.output.notes if "batch" in note]

    @property
    def count(self) -> int:
        """Pictures drawn so far, of the numbers 0, 1, ..."""
        return max((stop for _, stop in self._batches), default=0)

    def missing(self, n: int, batch_size: int) -> tuple[int, list[Tensor]]:
        """How many of the first ``n`` pictures are there, whole, and the batches of numbers to draw for the others.

        Raises:
            UserError: something else has the name of a picture or of the grid.
        """
        self.output.has(GRID)
        there = {number for number in range(n) if self.output.has(_name(number))}
        again = [span for span in self._batches if not there.issuperset(range(span[0], min(span[1], n)))]
        new = [(start, min(start + batch_size, n)) for start in range(self.count, n, batch_size)]
        return len(there), [torch.arange(*span) for span in (*again, *new)]

    def save(self, numbers: Tensor, pictures: NDArray[np.uint8]) -> None:
        """Save a batch (B, H, W, 3) of these numbers; those that are there stay."""
        span = int(numbers[0]), int(numbers[-1]) + 1
        files = {_name(number): png(picture) for number, picture in zip(range(*span), pictures, strict=True)}
        if not self._begun:
            self.output.add({}, protocol=self.protocol)
            self._begun = True
        if span in self._batches:
            self.output.add({name: files[name] for name in files if not os.path.lexists(self.output.folder / name)})
        else:
            self.output.add(files, batch=span)
            self._batches.append(span)

    def save_grid(self, most: int, columns: int) -> int:
        """Save a grid of the first pictures, at most ``most``; returns how many it shows."""
        names = [name for name in map(_name, range(min(most, self.count))) if self.output.owns(name)]
        tiles = np.stack([np.asarray(Image.open(self.output.folder / name)) for name in names])
        self.output.add({GRID: png(enlarged(tile(tiles, columns)))})
        return len(names)


def _name(number: int) -> str:
    return f"{number:06d}.png"
