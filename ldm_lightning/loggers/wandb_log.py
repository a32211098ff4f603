"""Weights & Biases: one run a run folder, online when there is a key, offline when there is none.

The run's id is the name of its folder, so a resumed run goes on in the same wandb run. Nothing here ever asks a
question: a cluster job has nobody to answer. Without a key the run is written below the run folder and can be
uploaded later, when one line of the log has said how.
"""

from __future__ import annotations

import os
import re
import shlex
from pathlib import Path
from typing import Any

from pytorch_lightning.loggers import WandbLogger
from pytorch_lightning.utilities import rank_zero_info, rank_zero_only

from ldm_lightning.errors import UserError

__all__ = ["WandbRun"]


class WandbRun(WandbLogger):
    """Lightning's wandb logger with a stable id, and offline instead of a prompt when no key is found.

    ``WANDB_MODE`` (``online``, ``offline``, ``disabled``) works as everywhere; unset and without a key means offline.

    The configuration goes up through the inherited ``log_hyperparams`` as one plain nested dict. Checkpoints stay in
    the run folder; what is worth keeping elsewhere goes up by ``log_artifact``.

    Args:
        project: wandb project.
        name: name of the run folder; also the run's id, with ``-`` for the characters that wandb forbids there.
        save_dir: the run folder; wandb writes to its folder ``wandb``.
        **init: anything else that ``wandb.init`` takes, such as ``entity``, ``group`` or ``tags``.

    Raises:
        UserError: if ``WANDB_MODE`` demands a connection and there is no key.
    """

    def __init__(self, project: str, name: str, save_dir: str | Path, **init: Any) -> None:
        run_id = _allowed(name)
        super().__init__(
            project=project,
            name=name,
            id=run_id,
            save_dir=save_dir,
            log_model=False,
            # Not Lightning's `offline`, which sets WANDB_MODE for the whole process and so for the next run too.
            mode=_mode(Path(save_dir), run_id),
            **init,
        )

    @rank_zero_only
    def log_artifact(self, folder: str | Path, name: str, kind: str, metadata: dict[str, Any]) -> None:
        """Record a folder as a version of an artifact; offline it is staged and goes up with the run.

        Args:
            folder: an existing folder, such as ``export``.
            name: artifact name, with ``-`` for the characters that wandb forbids there.
            kind: wandb's artifact type, such as ``first_stage`` or ``model``.
            metadata: plain values to show beside it.
        """
        import wandb

        artifact = wandb.Artifact(_allowed(name), type=kind, metadata=metadata)
        artifact.add_dir(str(folder))
        self.experiment.log_artifact(artifact)


def _allowed(name: str) -> str:
    return re.sub(r"[^\w.-]", "-", name, flags=re.ASCII)


@rank_zero_only
def _mode(folder: Path, run_id: str) -> str | None:
    """Return the mode for ``wandb.init``; ``None`` leaves it to ``WANDB_MODE``, whose default is online."""
    import wandb

    demanded = os.environ.get("WANDB_MODE")
    if demanded in ("offline", "dryrun", "disabled") or wandb.login(prompt=False, verify=False):
        return None
    if demanded:
        raise UserError(f"WANDB_MODE={demanded} needs a wandb key; run `wandb login`, or unset it to log offline")
    written = f"{shlex.quote(str(folder))}/wandb/offline-run-*-{run_id}"
    rank_zero_info(f"No wandb key: logging offline; to upload later: wandb sync {written}")
    return "offline"
