"""TensorBoard event files in the run folder, for those who have the ``tracking`` extra."""

from __future__ import annotations

from pathlib import Path

from pytorch_lightning.loggers import TensorBoardLogger

from ldm_lightning.errors import needs_extra

__all__ = ["tensorboard_run"]


def tensorboard_run(save_dir: str | Path) -> TensorBoardLogger:
    """Return a logger that writes event files to ``<save_dir>/tensorboard``, the same for every resume of a run.

    Raises:
        UserError: if tensorboard is not installed.
    """
    try:
        return TensorBoardLogger(save_dir, name="tensorboard", version="", default_hp_metric=False)
    except ModuleNotFoundError as error:
        raise needs_extra("tensorboard", "tracking") from error
