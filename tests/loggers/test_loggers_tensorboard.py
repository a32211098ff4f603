from __future__ import annotations

import io
from pathlib import Path

import lightning_fabric.loggers.tensorboard as fabric
import numpy as np
import pytest
from PIL import Image

from ldm_lightning.errors import UserError
from ldm_lightning.loggers.csv_log import CsvLogger
from ldm_lightning.loggers.media import log_folder, log_pictures
from ldm_lightning.loggers.tensorboard_log import tensorboard_run


def test_scalars_and_pictures_read_back(tmp_path: Path) -> None:
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    grid = np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8)
    logger = tensorboard_run(tmp_path)
    logger.log_hyperparams({"optim": {"lr": 0.5}})
    logger.log_metrics({"train/loss": 0.375}, step=3)
    log_pictures(logger, "samples", grid, step=5)
    log_folder(logger, tmp_path, "export", "model", {})  # nothing to show, and no error
    logger.finalize("success")

    events = accumulator.EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert events.Tags()["scalars"] == ["train/loss"]  # no hp_metric beside it
    assert [(event.step, event.value) for event in events.Scalars("train/loss")] == [(3, 0.375)]
    (picture,) = events.Images("samples")
    assert picture.step == 5
    assert np.array_equal(np.asarray(Image.open(io.BytesIO(picture.encoded_image_string))), grid)


def test_a_missing_tensorboard_names_its_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fabric, "_TENSORBOARD_AVAILABLE", False)
    monkeypatch.setattr(fabric, "_TENSORBOARDX_AVAILABLE", False)
    with pytest.raises(UserError, match=r"ldm_lightning\[tracking\]"):
        tensorboard_run(tmp_path)


def test_the_csv_logger_passes_over_pictures_and_folders(tmp_path: Path) -> None:
    logger = CsvLogger(tmp_path)
    log_pictures(logger, "samples", np.zeros((2, 2, 1), np.uint8), 0)
    log_folder(logger, tmp_path, "export", "model", {})
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "grid", [np.zeros((2, 2, 3), np.float32), np.zeros((3, 2, 2), np.uint8), np.zeros((2, 2), np.uint8)]
)
def test_grids_that_loggers_would_bend_silently_are_refused(tmp_path: Path, grid: np.ndarray) -> None:
    with pytest.raises(ValueError, match="uint8 of shape"):
        log_pictures(CsvLogger(tmp_path), "samples", grid, 0)
