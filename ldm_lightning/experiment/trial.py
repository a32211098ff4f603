"""What the exported model of a run does, as ``ldm doctor`` looks at it: some errors, and some samples."""

from __future__ import annotations

from pathlib import Path

import torch
from hydra.errors import InstantiationException
from omegaconf import OmegaConf

from ldm_lightning.artifact import MANIFEST
from ldm_lightning.diagnosis import Trial
from ldm_lightning.errors import UserError, first_line
from ldm_lightning.experiment import build
from ldm_lightning.experiment.saved import read_manifest
from ldm_lightning.experiment.stages import stage_of

__all__ = ["DRAWS", "ITEMS", "LEAST", "affordable", "try_model"]

ITEMS = 256  # whose errors are measured: their scatter is then known to a twentieth
DRAWS = 256  # which leave an error of a few hundredths in what is measured of them
LEAST = 16
_WORK = {"cpu": 1e11, "cuda": 1e13}  # multiply-adds for errors, and for draws: 5 to 10 s of one slow core


def try_model(run: Path) -> Trial | str:
    """Try the model that ``run`` has exported on its validation items; or say in words why that cannot be."""
    if not (run / "export" / MANIFEST).is_file():
        return "no model has been exported yet"
    try:
        manifest = read_manifest(run)
        config = OmegaConf.create(manifest["config"])
        data = build.data_of_run(config)
        if not data.sizes["validation"]:
            return "no items were kept for validation"
        if data.fingerprint != config.derived.data:
            return "the data are not those that it was trained on (another fingerprint)"
        return stage_of(manifest["kind"]).trial(run, data)
    except (UserError, OSError, RuntimeError, InstantiationException) as error:  # all other checks go on
        return f"the model could not be tried: {first_line(error)}"


def affordable(device: torch.device, each: int, most: int) -> int:
    """How many items, at most ``most``, may be tried whose network costs ``each`` multiply-adds."""
    return min(most, int(_WORK.get(device.type, _WORK["cpu"]) / max(1, each)))
