"""Artifacts: what one command leaves for the next, a folder with weights and a manifest.

``manifest.json`` names the weights file by its checksum and holds the resolved configuration, so that the folder is all
a reader needs. Weights are written under a name of their own before the manifest is swapped in: whenever the writer is
killed, the folder holds either the old artifact or the new one, never a mixture.
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import json
import logging
import os
import shutil
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from ldm_lightning import __version__
from ldm_lightning.errors import UserError, room_for

if TYPE_CHECKING:  # torch takes seconds to import, and manifests are read without it
    from torch import Tensor

__all__ = [
    "Artifact",
    "check_finished",
    "check_keys",
    "copy_artifact",
    "file_checksum",
    "locate",
    "read_artifact",
    "read_manifest",
    "replace_file",
    "replacing",
    "scratch",
    "set_aside",
    "sweep",
    "write_artifact",
]

log = logging.getLogger(__name__)

MANIFEST = "manifest.json"
_RECORD = "scratch.json"
FORMAT = 1  # of what write_artifact writes; raised when an older reader would misread it


@dataclass(frozen=True)
class Artifact:
    """An artifact in memory: its manifest and its weights by name."""

    manifest: dict[str, Any]
    weights: dict[str, Tensor]


@contextlib.contextmanager
def replacing(
    path: Path, mark: str | None = None, size: int | None = None, make_way: Callable[[], None] | None = None
) -> Iterator[BinaryIO]:
    """Open a file that takes the place of ``path`` once it is complete and on the disk, and so is its name.

    A reader, or a crash, sees the old file or the new one, never a part; what fails leaves nothing behind. What a kill
    leaves is removed by :func:`sweep`.

    Args:
        path: the file to make or replace.
        mark: a checksum of the content, where nobody else writes here: it grows under a name with that in it, and what
            a killed writer left is overwritten by whoever writes the same again. By default it grows in a
            :func:`scratch`.
        size: bytes that it needs, when they are known, for the message of a full disk.
        make_way: called when the new file is on the disk, before it takes its place: to keep the old one.

    Raises:
        DiskFull: there is no room for it.
        OSError: the folder is missing or cannot be written to.
    """
    with room_for(path, size):
        with _beside(path, mark) as temporary:
            with temporary.open("wb" if mark else "xb") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            if make_way is not None:
                make_way()
            temporary.replace(path)
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)  # the rename itself must survive a power cut
        finally:
            os.close(folder)


@contextlib.contextmanager
def _beside(path: Path, mark: str | None) -> Iterator[Path]:
    """Where the content of ``path`` grows."""
    if mark is None:
        with scratch(path) as temporary:
            yield temporary
        return
    temporary = path.with_name(f".{path.name}.{mark}")
    try:
        yield temporary
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


@contextlib.contextmanager
def scratch(path: Path) -> Iterator[Path]:
    """A place for what is to become ``path``, in a folder of its own beside it, which is removed at the end.

    Before anything else the folder gets a record that says whose it is, since a name alone does not.

    Raises:
        OSError: the folder cannot be made.
    """
    folder = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    folder.mkdir()
    try:
        (folder / _RECORD).write_bytes(_record(path.name))
        yield folder / path.name
    finally:
        _drop(folder, path.name)


def _record(name: str) -> bytes:
    return json.dumps({"record": "ldm_lightning prepares a file here", "file": name}).encode()


def _drop(folder: Path, name: str) -> None:
    """Remove a scratch: first what grew in it, then its record, and the folder unless somebody put more there."""
    (folder / name).unlink(missing_ok=True)
    (folder / _RECORD).unlink(missing_ok=True)
    with contextlib.suppress(OSError):
        folder.rmdir()


def replace_file(path: Path, content: bytes) -> None:
    """Write ``content`` to ``path`` by :func:`replacing`."""
    with replacing(path, size=len(content)) as file:
        file.write(content)


def set_aside(path: Path) -> Path:
    """Rename ``path``, whose name is needed, to the first of ``NAME-1.EXT``, ``NAME-2.EXT`` ... that is free."""
    spare = (path.with_stem(f"{path.stem}-{k}") for k in itertools.count(1))
    return path.rename(next(free for free in spare if not os.path.lexists(free)))


def sweep(folder: Path) -> None:
    """Remove each :func:`scratch` in ``folder`` whose writer was killed; nobody else may be writing there.

    It is known by its record. What only has such a name, or files beside those recorded, stays.
    """
    for stale in folder.glob(".*"):
        name = stale.stem[1:]
        if stale.is_symlink() or not (stale / _RECORD).is_file():
            continue
        if (stale / _RECORD).read_bytes() == _record(name):
            _drop(stale, name)


def write_artifact(folder: Path, kind: str, weights: Mapping[str, Tensor], details: Mapping[str, Any]) -> None:
    """Write an artifact of ``kind`` to ``folder``, replacing an earlier one, and nothing else.

    Args:
        folder: made when missing.
        kind: the name of the stage that it is of.
        weights: tensors by name.
        details: whatever else the manifest should hold, such as the resolved configuration; plain JSON values.
    """
    import safetensors.torch

    folder.mkdir(parents=True, exist_ok=True)
    content = safetensors.torch.save({name: value.detach().cpu().contiguous() for name, value in weights.items()})
    digest = hashlib.sha256(content).hexdigest()
    weights_file = f"weights-{digest[:12]}.safetensors"
    replace_file(folder / weights_file, content)
    facts = {"format": FORMAT, "kind": kind, "weights": weights_file, "sha256": digest, "version": __version__}
    manifest = {**facts, **details}
    _swap_manifest(folder, json.dumps(manifest, indent=2).encode())


def _swap_manifest(folder: Path, content: bytes) -> None:
    """Make the artifact in ``folder`` the one that ``content`` describes, and drop the weights of the one before.

    Those are known by name and checksum from the manifest that goes; a manifest that is none of ours is set aside.
    """
    path = folder / MANIFEST
    before = _manifest_of(path)
    if before is None and os.path.lexists(path):
        log.warning("%s describes no artifact: it is kept as %s", path, set_aside(path).name)
    with replacing(path, hashlib.sha256(content).hexdigest()[:16]) as file:
        file.write(content)
    if before is not None and before["weights"] != json.loads(content)["weights"]:
        stale = folder / Path(before["weights"]).name
        if stale.is_file() and file_checksum(stale) == before["sha256"]:
            stale.unlink(missing_ok=True)


def _manifest_of(path: Path) -> dict[str, str] | None:
    """What the file ``path`` says of its weights, if it is the manifest of an artifact."""
    try:
        content = json.loads(path.read_bytes())
        return {key: str(content[key]) for key in ("weights", "sha256")}
    except (OSError, ValueError, KeyError, TypeError):
        return None


def file_checksum(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def locate(run: Path) -> Path:
    """The artifact folder of a run folder, or the folder itself when it already is an artifact."""
    return run if (run / MANIFEST).is_file() else run / "export"


def check_finished(run: Path) -> None:
    """Check that ``run`` holds an artifact, whatever is in it.

    Raises:
        UserError: there is no such folder, or training is not finished.
    """
    if not run.is_dir():
        raise UserError(f"{run} does not exist: give the folder of a finished run, such as runs/NAME")
    file = locate(run) / MANIFEST
    if not file.exists():
        begun = any((run / "checkpoints").glob("*.ckpt"))
        mend = f", or take what it has by: ldm finish run={run} checkpoint=last" if begun else ""
        raise UserError(
            f"{run} holds no finished model ({file} is missing): repeat the command that trained it, it resumes{mend}"
        )


def read_manifest(run: str | Path, kind: str | None = None) -> dict[str, Any]:
    """Read the manifest of a run's artifact, and leave its weights alone.

    Args:
        run: a run folder, or an artifact folder itself.
        kind: what the artifact must be, when it matters.

    Raises:
        UserError: nothing there, training not finished, damaged, of a later format, or of another kind.
    """
    run = Path(run)
    check_finished(run)
    folder, mend = locate(run), f"bring the old file back, or repeat the command that trained {run}"
    try:
        manifest = json.loads((folder / MANIFEST).read_text())
        if not isinstance(manifest, dict):
            raise ValueError
    except ValueError:
        raise UserError(f"{folder / MANIFEST} is damaged: {mend}") from None
    check_keys(manifest, ("kind", "weights", "sha256", "version"), folder / MANIFEST, mend)
    if not isinstance(manifest.get("format", 1), int) or manifest.get("format", 1) > FORMAT:  # the first name none
        raise UserError(
            f"{folder} has format {manifest['format']}, written by version {manifest.get('version')}; this is version "
            f"{__version__}, which reads formats up to {FORMAT}: install a newer ldm_lightning"
        )
    if kind is not None and manifest["kind"] != kind:
        raise UserError(f"{run} holds a {manifest['kind']} model, but a {kind} model is needed here")
    return dict(manifest)


def _weights_file(folder: Path, manifest: Mapping[str, Any]) -> Path:
    """The file of weights that the manifest names, which lies beside it and nowhere else."""
    name = str(manifest.get("weights", ""))
    if Path(name).name != name:
        raise UserError(f"{folder / MANIFEST} names weights={name}, which lie elsewhere: take the run from its author")
    return folder / name


def check_keys(content: Any, keys: Iterable[str], file: Path, mend: str, prefix: str = "") -> None:
    """Check that ``content``, which ``file`` holds as ``prefix``, is a mapping with all of ``keys``.

    Raises:
        UserError: it names the missing ones, and ends with ``mend``.
    """
    missing = [f"{prefix}{key}" for key in keys if not isinstance(content, Mapping) or key not in content]
    if missing:
        raise UserError(f"{file} is damaged ({', '.join(missing)} missing): {mend}")


def read_artifact(run: str | Path, kind: str | None = None) -> Artifact:
    """Read and verify the artifact of a run; arguments and errors as of :func:`read_manifest`."""
    import safetensors.torch

    manifest, folder = read_manifest(run, kind), locate(Path(run))
    try:
        content = _weights_file(folder, manifest).read_bytes()
    except (FileNotFoundError, IsADirectoryError):
        raise UserError(f"{folder} is half written (no weights): repeat the command that trained {run}") from None
    if hashlib.sha256(content).hexdigest() != manifest["sha256"]:
        raise UserError(
            f"{folder / manifest['weights']} is damaged (wrong checksum): repeat the command that trained {run}"
        )
    return Artifact(manifest, safetensors.torch.load(content))


def copy_artifact(run: str | Path, folder: Path) -> None:
    """Copy the artifact of ``run`` into ``folder``, so that a run does not depend on another one's folder.

    What lies beside the artifact stays behind, and what lies in ``folder`` beside the copy stays there. A copy that is
    there already is left alone, another artifact is replaced. The manifest comes last: a killed writer leaves the old
    artifact, or none, or the new one.

    Raises:
        UserError: ``run`` holds no artifact.
    """
    manifest, source = read_manifest(run), locate(Path(run))
    with contextlib.suppress(UserError):
        if read_manifest(folder) == manifest:  # not only the weights: statistics decide the scale
            return
    folder.mkdir(parents=True, exist_ok=True)
    if (source / "first_stage").is_dir():
        copy_artifact(source / "first_stage", folder / "first_stage")
    with (
        _weights_file(source, manifest).open("rb") as original,
        replacing(
            folder / manifest["weights"], manifest["sha256"][:16], _weights_file(source, manifest).stat().st_size
        ) as copy,
    ):
        shutil.copyfileobj(original, copy)
    _swap_manifest(folder, (source / MANIFEST).read_bytes())
