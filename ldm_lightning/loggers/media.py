"""Pictures and folders to whatever logger is there, so that callbacks need not know which one it is.

Both functions send what a logger can show and pass over one that can't: the files themselves lie in the run folder
in any case.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pytorch_lightning.loggers import Logger, TensorBoardLogger, WandbLogger

from ldm_lightning.loggers.wandb_log import WandbRun

__all__ = ["log_folder", "log_pictures"]


def log_pictures(logger: Logger, name: str, grid: NDArray[np.uint8], step: int) -> None:
    """Show one picture grid in wandb or TensorBoard.

    Args:
        logger: any Lightning logger.
        name: where the picture is shown, such as ``samples``.
        grid: (H, W, 3) or (H, W, 1), uint8, the array whose PNG lies in the run folder.
        step: the step whose weights made the pictures.

    Raises:
        ValueError: if ``grid`` has another type or shape; loggers would rescale or transpose it silently.
    """
    if grid.dtype != np.uint8 or grid.ndim != 3 or grid.shape[2] not in (1, 3):
        raise ValueError(f"grid must be uint8 of shape (H, W, 1 or 3), not {grid.dtype} of shape {grid.shape}")
    if isinstance(logger, WandbLogger):
        logger.log_image(name, [grid], step)
    elif isinstance(logger, TensorBoardLogger):
        logger.experiment.add_image(name, grid, step, dataformats="HWC")


def log_folder(logger: Logger, folder: str | Path, name: str, kind: str, metadata: dict[str, Any]) -> None:
    """Record a finished folder (an exported first stage or model) as a wandb artifact; see `WandbRun.log_artifact`."""
    if isinstance(logger, WandbRun):
        logger.log_artifact(folder, name, kind, metadata)
