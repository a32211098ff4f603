"""Which checkpoint a run goes on from, and what becomes of damaged ones."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from ldm_lightning.artifact import sweep
from ldm_lightning.callbacks.checkpoint_files import BEST, intact, misfit, newest, set_aside
from ldm_lightning.errors import UserError, nearest
from ldm_lightning.experiment.run_folder import is_first_process

__all__ = ["check_resume", "find_checkpoint"]

log = logging.getLogger(__name__)

_HOW = ("auto", "anew")
_REPLACED = ("checkpoints/best.ckpt", "metrics.csv", "export", "samples")  # by a run that starts anew


def check_resume(resume: object) -> None:
    """Refuse a way to resume that there is not."""
    if resume not in _HOW:
        raise UserError(f"resume={resume} is none of {', '.join(_HOW)}{nearest(str(resume), _HOW)}")


def find_checkpoint(folder: Path, resume: str, weights: Mapping[str, Tensor]) -> Path | None:
    """The checkpoint that the run in ``folder`` goes on from; None to start.

    Nothing is thrown away: damaged checkpoints, and what a new start would replace, are renamed. Half files of a writer
    that was killed are removed, so the caller must have locked the folder.

    Args:
        folder: of the run.
        resume: "auto", or "anew" to start anew where all checkpoints are damaged.
        weights: of the model that is to go on, for a checkpoint to fit.

    Raises:
        UserError: no checkpoint is whole, the whole one does not fit, or a new start would give up a whole one.
    """
    checkpoints = folder / "checkpoints"
    path, wrong = newest(checkpoints)
    reasons = "; ".join(f"{file} {reason}" for file, reason in wrong.items())
    if resume == "anew" and path is not None:
        raise UserError(
            f"{path} is whole, and resume=anew would give up its training: leave resume=anew out to go on from it, or "
            "choose another name=... to start anew"
        )
    if resume != "anew" and path is None and wrong:
        best = checkpoints / BEST
        other = f"copy {best}, which is whole, to last.ckpt to go on from there, or " if intact(best) else ""
        raise UserError(f"no checkpoint is whole ({reasons}): {other}add resume=anew to start anew and keep them aside")
    if path is not None and (reason := misfit(path, weights)):
        raise UserError(
            f"{path} belongs to another model ({reason}): bring back the run's own, or choose another name=... to "
            "start anew"
        )
    if is_first_process():
        for place in (folder, folder / "export", checkpoints):
            sweep(place)
        kept = [set_aside(file, "damaged") for file in wrong]
        if resume == "anew":
            kept += [set_aside(folder / name, "before") for name in _REPLACED if (folder / name).exists()]
        if wrong:
            log.warning("%s", reasons)
        if kept:
            log.warning("kept aside: %s", ", ".join(str(file.relative_to(folder)) for file in kept))
    return path
