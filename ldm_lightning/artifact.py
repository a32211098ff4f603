"""Artifacts: what one command leaves for the next, a folder with weights and a manifest.

``manifest.json`` names the weights file by its checksum and holds the resolved configuration, so that the folder is all
a reader needs. Weights are written under a name of their own before the manifest is swapped in: whenever the writer is
killed, the folder holds either the old artifact or the new one, never a mixture.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import tempfile
import uuid
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import safetensors.torch
from torch import Tensor

from ldm_lightning import __version__
from ldm_lightning.errors import UserError

__all__ = [
    "RECORDED",
    "Artifact",
    "check_keys",
    "copy_artifact",
    "locate",
    "read_artifact",
    "read_manifest",
    "replace_file",
    "replacing",
    "write_artifact",
]

MANIFEST = "manifest.json"
_COMMON = ("stage", "data", "derived", "first_stage", "trainer")
RECORDED = {  # by kind of artifact, what the configuration that is recorded with it always holds
    "first_stage": _COMMON,
    "latent_diffusion": (*_COMMON, "denoiser", "condition", "path", "prediction", "objective", "sampler", "guidance"),
}
FORMAT = 1  # of what write_artifact writes; raised when an older reader would misread it


@dataclass(frozen=True)
class Artifact:
    """An artifact in memory: its manifest and its weights by name."""

    manifest: dict[str, Any]
    weights: dict[str, Tensor]


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """Open a file that takes the place of ``path`` once it is complete and on the disk.

    A reader, or a crash, sees the old file or the new one, never a part; what fails leaves nothing behind.

    Raises:
        OSError: the folder is missing or cannot be written to.
    """
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    try:
        with temporary.open("xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def replace_file(path: Path, content: bytes) -> None:
    """Write ``content`` to ``path`` by :func:`replacing`."""
    with replacing(path) as file:
        file.write(content)


def write_artifact(folder: Path, kind: str, weights: Mapping[str, Tensor], details: Mapping[str, Any]) -> None:
    """Write an artifact of ``kind`` to ``folder``, replacing an earlier one.

    Args:
        folder: made when missing.
        kind: "first_stage" or "latent_diffusion".
        weights: tensors by name.
        details: whatever else the manifest should hold, such as the resolved configuration; plain JSON values.
    """
    folder.mkdir(parents=True, exist_ok=True)
    content = safetensors.torch.save({name: value.detach().cpu().contiguous() for name, value in weights.items()})
    digest = hashlib.sha256(content).hexdigest()
    weights_file = f"weights-{digest[:12]}.safetensors"
    replace_file(folder / weights_file, content)
    facts = {"format": FORMAT, "kind": kind, "weights": weights_file, "sha256": digest, "version": __version__}
    manifest = {**facts, **details}
    replace_file(folder / MANIFEST, json.dumps(manifest, indent=2).encode())
    for stale in folder.glob("weights-*.safetensors"):
        if stale.name != weights_file:
            with contextlib.suppress(FileNotFoundError):
                stale.unlink()


def locate(run: Path) -> Path:
    """The artifact folder of a run folder, or the folder itself when it already is an artifact."""
    return run if (run / MANIFEST).is_file() else run / "export"


def read_manifest(run: str | Path, kind: str | None = None) -> dict[str, Any]:
    """Read the manifest of a run's artifact, and leave its weights alone.

    Args:
        run: a run folder, or an artifact folder itself.
        kind: what the artifact must be, when it matters.

    Raises:
        UserError: nothing there, training not finished, damaged, of a later format, or of another kind.
    """
    run = Path(run)
    if not run.is_dir():
        raise UserError(f"{run} does not exist: give the folder of a finished run, such as runs/NAME")
    folder, mend = locate(run), f"bring the old file back, or repeat the command that trained {run}"
    try:
        manifest = json.loads((folder / MANIFEST).read_text())
    except FileNotFoundError:
        begun = any((run / "checkpoints").glob("*.ckpt"))
        mend = f", or take what it has by: ldm finish run={run} checkpoint=last" if begun else ""
        raise UserError(
            f"{run} holds no finished model ({folder / MANIFEST} is missing): "
            f"repeat the command that trained it, it resumes{mend}"
        ) from None
    except (json.JSONDecodeError, UnicodeDecodeError):
        raise UserError(f"{folder / MANIFEST} is damaged: {mend}") from None
    check_keys(manifest, ("kind", "weights", "sha256", "version"), folder / MANIFEST, mend)
    if not isinstance(manifest.get("format", 1), int) or manifest.get("format", 1) > FORMAT:  # the first name none
        raise UserError(
            f"{folder} has format {manifest['format']}, written by version {manifest.get('version')}; this is version "
            f"{__version__}, which reads formats up to {FORMAT}: install a newer ldm_lightning"
        )
    if manifest["kind"] not in RECORDED:
        known = ", ".join(RECORDED)
        raise UserError(f"{folder / MANIFEST} is damaged (kind={manifest['kind']} is none of {known}): {mend}")
    if kind is not None and manifest["kind"] != kind:
        raise UserError(f"{run} holds a {manifest['kind']} model, but a {kind} model is needed here")
    if "config" in manifest:
        check_keys(manifest["config"], RECORDED[manifest["kind"]], folder / MANIFEST, mend, "config.")
    return dict(manifest)


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
    manifest, folder = read_manifest(run, kind), locate(Path(run))
    try:
        content = (folder / manifest["weights"]).read_bytes()
    except (FileNotFoundError, KeyError):
        raise UserError(f"{folder} is half written (no weights): repeat the command that trained {run}") from None
    if hashlib.sha256(content).hexdigest() != manifest["sha256"]:
        raise UserError(
            f"{folder / manifest['weights']} is damaged (wrong checksum): repeat the command that trained {run}"
        )
    return Artifact(manifest, safetensors.torch.load(content))


def copy_artifact(run: str | Path, folder: Path) -> None:
    """Copy the artifact of ``run`` into ``folder``, so that a run does not depend on another one's folder.

    What lies beside the artifact stays behind. A copy that is there already is left alone, another artifact, or part of
    one, is replaced.

    Raises:
        UserError: ``run`` holds no artifact.
    """
    manifest, source = read_manifest(run), locate(Path(run))
    if folder.exists():
        with contextlib.suppress(UserError):
            if read_manifest(folder) == manifest:  # not only the weights: statistics decide the scale
                return
    temporary = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    shutil.copy2(source / manifest["weights"], temporary)
    shutil.copy2(source / MANIFEST, temporary)
    if (source / "first_stage").is_dir():
        copy_artifact(source / "first_stage", temporary / "first_stage")
    shutil.rmtree(folder, ignore_errors=True)
    temporary.rename(folder)
