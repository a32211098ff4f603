"""Runs, artifacts and latent caches as the verbs read them: nothing of their configurations gets past the whitelist.

No other module of ``experiment`` and ``cli`` reads a configuration from a folder, which a test of the imports enforces.
"""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from ldm_lightning import artifact
from ldm_lightning.data import latent_files
from ldm_lightning.experiment import run_folder
from ldm_lightning.experiment.renamed import renamed
from ldm_lightning.experiment.trust import vetted

__all__ = ["read_artifact", "read_cache", "read_config", "read_manifest"]


def read_manifest(run: str | Path, kind: str | None = None) -> dict[str, Any]:
    """See :func:`ldm_lightning.artifact.read_manifest`.

    Raises:
        UserError: likewise, or its configuration names what is not trusted.
    """
    manifest = renamed(artifact.read_manifest(run, kind))
    return vetted(manifest, artifact.locate(Path(run)) / artifact.MANIFEST)


def read_artifact(run: str | Path, kind: str | None = None) -> artifact.Artifact:
    """See :func:`ldm_lightning.artifact.read_artifact`; errors as of :func:`read_manifest`."""
    read = artifact.read_artifact(run, kind)
    return replace(read, manifest=vetted(renamed(read.manifest), artifact.locate(Path(run)) / artifact.MANIFEST))


def read_config(run: Path) -> dict[str, Any]:
    """See :func:`ldm_lightning.experiment.run_folder.read_config`.

    Raises:
        UserError: likewise, or it names what is not trusted.
    """
    return vetted(run_folder.read_config(run), run / "config.yaml")


def read_cache(root: Path) -> latent_files.Manifest:
    """See :func:`ldm_lightning.data.latent_files.read_manifest`.

    Raises:
        UserError: likewise, or the configuration of its pictures names what is not trusted.
    """
    manifest = latent_files.read_manifest(root)
    vetted(asdict(manifest), root / latent_files.MANIFEST)
    return manifest
