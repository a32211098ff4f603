"""Runs, artifacts and latent caches as the verbs read them: nothing of their configurations gets past the whitelist.

No other module of ``experiment`` and ``cli`` reads a configuration from a folder, which a test of the imports enforces.
"""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from ldm_lightning import artifact
from ldm_lightning.data import latent_files
from ldm_lightning.errors import UserError
from ldm_lightning.experiment import run_folder
from ldm_lightning.experiment.renamed import renamed
from ldm_lightning.experiment.stages import STAGES, recorded
from ldm_lightning.experiment.trust import is_trusted, vetted

__all__ = ["read_artifact", "read_cache", "read_config", "read_manifest"]


def read_manifest(run: str | Path, kind: str | None = None) -> dict[str, Any]:
    """See :func:`ldm_lightning.artifact.read_manifest`.

    Raises:
        UserError: likewise, or its configuration names what is not trusted.
    """
    return _vetted(artifact.read_manifest(run, kind), run)


def read_artifact(run: str | Path, kind: str | None = None) -> artifact.Artifact:
    """See :func:`ldm_lightning.artifact.read_artifact`; errors as of :func:`read_manifest`."""
    read = artifact.read_artifact(run, kind)
    return replace(read, manifest=_vetted(read.manifest, run))


def _vetted(manifest: dict[str, Any], run: str | Path) -> dict[str, Any]:
    file, kind = artifact.locate(Path(run)) / artifact.MANIFEST, str(manifest["kind"])
    mend = f"bring the old file back, or repeat the command that trained {run}"
    if kind not in STAGES and not is_trusted(kind):
        raise UserError(f"{file} is damaged (kind={kind} is none of {', '.join(STAGES)}): {mend}, or add trust=PACKAGE")
    manifest = vetted(renamed(manifest), file)
    if "config" in manifest:
        artifact.check_keys(manifest["config"], recorded(kind), file, mend, "config.")
    return manifest


def read_config(run: Path) -> dict[str, Any]:
    """See :func:`ldm_lightning.experiment.run_folder.read_config`.

    Raises:
        UserError: likewise, or it names what is not trusted.
    """
    config = vetted(run_folder.read_config(run), run / "config.yaml")
    if config["stage"] not in STAGES and not is_trusted(config["stage"]):
        raise UserError(
            f"{run / 'config.yaml'} is of stage={config['stage']}, which is not known here: add trust=PACKAGE"
        )
    return config


def read_cache(root: Path) -> latent_files.Manifest:
    """See :func:`ldm_lightning.data.latent_files.read_manifest`.

    Raises:
        UserError: likewise, or the configuration of its pictures names what is not trusted.
    """
    manifest = latent_files.read_manifest(root)
    vetted(asdict(manifest), root / latent_files.MANIFEST)
    return manifest
