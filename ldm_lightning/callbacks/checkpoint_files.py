"""Checkpoint files: written whole or not at all, read without running what they hold, and never thrown away."""

from __future__ import annotations

import contextlib
import zipfile
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from pytorch_lightning.plugins.io import TorchCheckpointIO
from torch import Tensor

from ldm_lightning.artifact import replacing
from ldm_lightning.errors import UserError, first_line

__all__ = [
    "BEST",
    "LAST",
    "AtomicCheckpointIO",
    "damage",
    "intact",
    "latest",
    "misfit",
    "newest",
    "read_state",
    "set_aside",
]

BEST = "best.ckpt"
LAST = "last.ckpt"
PREVIOUS = "previous-last.ckpt"
_PARTS = {"state_dict", "loops", "callbacks", "optimizer_states", "lr_schedulers", "global_step"}


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes beside the target, flushes to disk, then renames; the last.ckpt before stays as previous-last.ckpt.

    A last.ckpt that is damaged takes nothing's place: it is set aside.
    """

    def __init__(self) -> None:
        self._whole: Path | None = None  # the last.ckpt that was read or written here, which need not be checked

    def load_checkpoint(self, path: Any, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """Lightning's own, and remember which file it was."""
        state: dict[str, Any] = super().load_checkpoint(path, *args, **kwargs)
        self._whole = Path(path)
        return state

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        """Write ``checkpoint`` to ``path``; a reader sees a whole file or none.

        Raises:
            DiskFull: everything that was there is as it was.
        """
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        last = path.name == LAST
        make_way = partial(self._make_way, path) if last else None
        with replacing(path, size=_bytes(checkpoint), make_way=make_way) as file:
            torch.save(checkpoint, file)
        if last:
            self._whole = path

    def _make_way(self, path: Path) -> None:
        if not path.exists():
            return
        if path == self._whole or intact(path):
            path.replace(path.with_name(PREVIOUS))
        else:
            set_aside(path, "damaged")


def _bytes(node: Any) -> int:
    """Bytes of all tensors below a node of a checkpoint, which are nearly all of its file."""
    if isinstance(node, Tensor):
        return node.untyped_storage().nbytes()
    children = node.values() if isinstance(node, Mapping) else node if isinstance(node, list | tuple) else ()
    return sum(map(_bytes, children))


def read_state(path: Path) -> dict[str, Any]:
    """The training state in a checkpoint file, its tensors left on the disk until they are looked at.

    Raises:
        ValueError: nothing can be resumed from it, for the reason given; code in it is not run.
        OSError: it cannot be read.
    """
    if not path.stat().st_size:
        raise ValueError("is empty")
    try:
        with zipfile.ZipFile(path) as archive:
            record = archive.testzip()
    except PermissionError:
        raise
    except Exception as error:  # whatever a decoder says of nonsense
        raise ValueError(f"is cut short, or no checkpoint at all ({first_line(error)})") from error
    if record is not None:
        raise ValueError(f"is damaged (wrong checksum of {record})")
    try:
        state = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except Exception as error:
        raise ValueError("holds something else than numbers and names, which is not read: it may be code") from error
    missing = sorted(_PARTS - state.keys()) if isinstance(state, dict) else ["everything"]
    if missing or not _all_tensors(state["state_dict"]):
        raise ValueError(f"is not the training state of a run ({', '.join(missing) or 'weights'} missing)")
    return dict(state)


def _all_tensors(weights: Any) -> bool:
    return isinstance(weights, dict) and all(isinstance(value, Tensor) for value in weights.values())


def damage(path: Path) -> str | None:
    """Why nothing can be resumed from a checkpoint file; None for a whole one.

    Raises:
        OSError: it is not there or may not be read.
    """
    try:
        read_state(path)
    except ValueError as error:
        return str(error)
    return None


def intact(path: Path) -> bool:
    """Whether there is such a checkpoint file and training can be resumed from it."""
    with contextlib.suppress(OSError):
        return damage(path) is None
    return False


def newest(folder: Path) -> tuple[Path | None, dict[Path, str]]:
    """The newest whole checkpoint to resume from, if any, and what is wrong with those newer than it.

    Raises:
        UserError: one may not be read.
    """
    wrong: dict[Path, str] = {}
    for path in (folder / LAST, folder / PREVIOUS):
        try:
            reason = damage(path)
        except FileNotFoundError:
            continue
        except OSError as error:
            raise UserError(f"{path} cannot be read ({error.strerror}): make it readable") from error
        if reason is None:
            return path, wrong
        wrong[path] = reason
    return None, wrong


def latest(folder: Path) -> Path | None:
    """The newest intact checkpoint to resume from: ``last.ckpt``, else the one before; None when there is none."""
    return newest(folder)[0]


def misfit(path: Path, weights: Mapping[str, Tensor]) -> str | None:
    """What of a whole checkpoint does not fit a model with these ``weights``; None when all does."""
    there, here = read_state(path)["state_dict"], weights
    shapes = {name: [tuple(weights[name].shape) for weights in (there, here)] for name in there.keys() & here.keys()}
    lines = [f"it lacks {name}" for name in here.keys() - there.keys()]
    lines += [f"it has {name} besides" for name in there.keys() - here.keys()]
    lines += [f"{name} has shape {old}, not {new}" for name, (old, new) in shapes.items() if old != new]
    if not lines:
        return None
    return f"{min(lines)}, and {len(lines) - 1} more" if len(lines) > 1 else lines[0]


def set_aside(path: Path, why: str) -> Path:
    """Rename ``path`` to ``<why>-<name>``, or ``<why>-2-<name>`` ... where that is taken; return its new place."""
    number, place = 1, path.with_name(f"{why}-{path.name}")
    while place.exists():
        number += 1
        place = path.with_name(f"{why}-{number}-{path.name}")
    return path.rename(place)
