"""What an offline wandb run wrote is read back from its transaction log, by wandb's own message definitions."""

from __future__ import annotations

import json
import os
import pty
import struct
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
import wandb
from PIL import Image
from pytorch_lightning.utilities import rank_zero_only
from torch.utils.data import DataLoader
from wandb.proto.wandb_internal_pb2 import Record

from ldm_lightning.errors import UserError
from ldm_lightning.loggers.media import log_folder, log_pictures
from ldm_lightning.loggers.wandb_log import WandbRun


def isolated(home: Path) -> dict[str, str]:
    """Return the environment of a user who has never heard of wandb."""
    clean = {key: value for key, value in os.environ.items() if not key.startswith("WANDB") and key != "NETRC"}
    return clean | {"HOME": str(home), "XDG_CACHE_HOME": str(home), "XDG_DATA_HOME": str(home), "WANDB_SILENT": "true"}


@pytest.fixture(autouse=True)
def stranger(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    home = tmp_path / "home"
    home.mkdir()
    for key in os.environ.keys() - (environment := isolated(home)).keys():
        monkeypatch.delenv(key)
    for key, value in environment.items():
        monkeypatch.setenv(key, value)
    wandb.teardown()  # forget what another test has configured
    yield
    wandb.teardown()


def records(path: Path) -> list[Any]:
    """Read a ``.wandb`` file: a 7 byte header, then 32 KiB blocks of chunks (crc32, length, first/middle/last)."""
    data, offset, whole, found = path.read_bytes(), 7, b"", []
    assert data[:4] == b":W&B"
    while offset + 7 <= len(data):
        if (left := -offset % 32768) and left < 7:  # too short for a chunk's header
            offset += left
            continue
        _, length, kind = struct.unpack_from("<IHB", data, offset)
        whole += data[offset + 7 : offset + 7 + length]
        offset += 7 + length
        if kind in (1, 4):  # a record in one piece, or its last piece
            found.append(Record.FromString(whole))
            whole = b""
    return found


def items(entries: Any) -> dict[str, Any]:
    return {"/".join(entry.nested_key) or entry.key: json.loads(entry.value_json) for entry in entries}


class Constant(pl.LightningModule):
    """Its loss after ``n`` steps is ``1 - n / 8``: exact in binary."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(()))

    def training_step(self, batch: torch.Tensor, index: int) -> torch.Tensor:
        self.log("train/loss", self.weight)
        return self.weight

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=1 / 8)


@pytest.mark.slow
def test_an_offline_run_holds_config_history_pictures_and_artifacts(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run, export = tmp_path / "first run", tmp_path / "export"
    export.mkdir()
    (export / "weights.safetensors").write_bytes(b"some weights")
    grid = np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8)

    logger = WandbRun("project", name=run.name, save_dir=run, entity=None, tags=["tiny"])
    logger.log_hyperparams({"optim": {"lr": 0.125}, "name": run.name})
    trainer = pl.Trainer(
        max_steps=4,
        accelerator="cpu",
        logger=logger,
        log_every_n_steps=1,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(Constant(), DataLoader(torch.zeros(4)))
    log_pictures(logger, "samples", grid, step=4)
    log_folder(logger, export, "first run/export", "model", {"fid": 12.5})
    wandb.finish()

    (folder,) = run.glob("wandb/offline-run-*")
    (hint,) = [message for message in caplog.messages if "wandb sync" in message]
    named = subprocess.check_output(["bash", "-c", hint.split(": ")[-1].replace("wandb sync", "echo")], text=True)
    assert named.strip() == str(folder)
    assert "WANDB_MODE" not in os.environ  # the next run of this process may be online

    written = records(folder / "run-first-run.wandb")
    (head,) = [record.run for record in written if record.HasField("run")]
    assert (head.run_id, head.display_name, head.project) == ("first-run", "first run", "project")
    assert list(head.tags) == ["tiny"]
    config = items(head.config.update)
    for record in written:
        config |= items(record.config.update)
    assert (config["optim"], config["name"]) == ({"lr": 0.125}, "first run")

    history = [items(record.history.item) for record in written if record.HasField("history")]
    losses = {row["trainer/global_step"]: row["train/loss"] for row in history if "train/loss" in row}
    assert losses == {0: 1.0, 1: 0.875, 2: 0.75, 3: 0.625}

    (samples,) = [row for row in history if "samples/filenames" in row]
    assert samples["trainer/global_step"] == 4
    with Image.open(folder / "files" / samples["samples/filenames"][0]) as picture:
        assert np.array_equal(np.asarray(picture), grid)

    (artifact,) = [record.artifact for record in written if record.HasField("artifact")]
    assert (artifact.name, artifact.type, json.loads(artifact.metadata)) == ("first-run-export", "model", {"fid": 12.5})
    (content,) = artifact.manifest.contents
    assert content.path == "weights.safetensors"
    assert Path(content.local_path).read_bytes() == b"some weights"


@pytest.mark.slow
def test_without_a_key_nobody_is_asked_even_at_a_terminal(tmp_path: Path) -> None:
    script = (
        "import sys, wandb; from ldm_lightning.loggers.wandb_log import WandbRun\n"
        "WandbRun('project', name='quiet', save_dir=sys.argv[1]).log_metrics({'loss': 1.0}, 0); wandb.finish()"
    )
    ours, theirs = pty.openpty()
    try:
        subprocess.run(
            [sys.executable, "-c", script, str(tmp_path)],
            env=isolated(tmp_path / "home") | {"WANDB_SILENT": "false", "TERM": "xterm"},  # silence would forbid it
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
            timeout=90,  # a prompt would wait for ever
            check=True,
        )
    finally:
        os.close(theirs)
        os.close(ours)
    assert len(list(tmp_path.glob("wandb/offline-run-*-quiet"))) == 1


def test_the_mode_is_the_users(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def mode() -> str | None:
        wandb.teardown()  # wandb reads its environment once
        return WandbRun("project", name="run", save_dir=tmp_path)._wandb_init["mode"]

    assert mode() == "offline"
    for word in ("offline", "disabled"):
        monkeypatch.setenv("WANDB_MODE", word)
        assert mode() is None
    monkeypatch.setenv("WANDB_MODE", "online")
    with pytest.raises(UserError, match="needs a wandb key"):
        mode()
    monkeypatch.delenv("WANDB_MODE")
    monkeypatch.setattr(wandb, "login", lambda **_: True)
    assert mode() is None


def test_other_ranks_leave_wandb_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rank_zero_only, "rank", 1)
    monkeypatch.setattr(wandb, "login", pytest.fail)
    logger = WandbRun("project", name="run", save_dir=tmp_path / "run")
    logger.log_metrics({"loss": 1.0}, 0)
    log_pictures(logger, "samples", np.zeros((2, 2, 3), np.uint8), 0)
    log_folder(logger, tmp_path, "export", "model", {})
    assert wandb.run is None
    assert not (tmp_path / "run").exists()
