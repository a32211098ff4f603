"""A checkpoint is whole or it is not there; what a crash leaves can be resumed from."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from ldm_lightning.callbacks.checkpoints import AtomicCheckpointIO, intact, latest


def save(folder: Path, step: int) -> None:
    AtomicCheckpointIO().save_checkpoint({"step": step, "weights": torch.full((1000,), step)}, folder / "last.ckpt")


def step(path: Path | None) -> int:
    assert path is not None
    return int(torch.load(path, weights_only=True)["step"])


def test_two_generations_are_kept(tmp_path: Path) -> None:
    assert latest(tmp_path) is None
    for number in (1, 2, 3):
        save(tmp_path, number)
    assert step(latest(tmp_path)) == 3
    assert step(tmp_path / "previous-last.ckpt") == 2
    assert sorted(path.name for path in tmp_path.iterdir()) == ["last.ckpt", "previous-last.ckpt"]


@pytest.mark.parametrize("damage", ["truncated", "empty", "bit flip", "missing"])
def test_a_damaged_last_falls_back(tmp_path: Path, damage: str) -> None:
    save(tmp_path, 1)
    save(tmp_path, 2)
    last = tmp_path / "last.ckpt"
    content = bytearray(last.read_bytes())
    if damage == "truncated":
        last.write_bytes(content[: len(content) // 2])
    elif damage == "empty":
        last.write_bytes(b"")
    elif damage == "bit flip":
        content[len(content) // 2] ^= 1
        last.write_bytes(content)
    else:
        last.unlink()
    assert not intact(last)
    assert step(latest(tmp_path)) == 1


def test_a_crash_while_writing_loses_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save(tmp_path, 1)

    def crash(checkpoint: Any, file: Any) -> None:
        file.write(b"half")
        raise OSError("disk full")

    monkeypatch.setattr(torch, "save", crash)
    with pytest.raises(OSError, match="disk full"):
        save(tmp_path, 2)
    assert step(latest(tmp_path)) == 1
