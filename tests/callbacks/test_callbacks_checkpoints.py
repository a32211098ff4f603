"""A checkpoint is whole or it is not there; what a crash leaves can be resumed from."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from ldm_lightning.callbacks.checkpoint_files import AtomicCheckpointIO, damage, intact, latest
from ldm_lightning.errors import DiskFull


def save(folder: Path, step: int) -> None:
    AtomicCheckpointIO().save_checkpoint(state(step), folder / "last.ckpt")


def state(step: int, size: int = 1000) -> dict[str, Any]:
    """What is seen as the training state of a run."""
    empty: dict[str, Any] = {"loops": {}, "callbacks": {}, "optimizer_states": [], "lr_schedulers": []}
    return {"global_step": step, "state_dict": {"weights": torch.full((size,), float(step))}, **empty}


def step(path: Path | None) -> int:
    assert path is not None
    return int(torch.load(path, weights_only=True)["global_step"])


def test_two_generations_are_kept(tmp_path: Path) -> None:
    assert latest(tmp_path) is None
    for number in (1, 2, 3):
        save(tmp_path, number)
    assert step(latest(tmp_path)) == 3
    assert step(tmp_path / "previous-last.ckpt") == 2
    assert sorted(path.name for path in tmp_path.iterdir()) == ["last.ckpt", "previous-last.ckpt"]


@pytest.mark.parametrize("fault", ["truncated", "empty", "bit flip", "missing"])
def test_a_damaged_last_falls_back(tmp_path: Path, fault: str) -> None:
    save(tmp_path, 1)
    save(tmp_path, 2)
    last = tmp_path / "last.ckpt"
    content = bytearray(last.read_bytes())
    if fault == "truncated":
        last.write_bytes(content[: len(content) // 2])
    elif fault == "empty":
        last.write_bytes(b"")
    elif fault == "bit flip":
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


@pytest.mark.parametrize("fault", ["truncated", "empty", "foreign"])
def test_a_whole_file_never_makes_way_for_a_damaged_one(tmp_path: Path, fault: str) -> None:
    save(tmp_path, 1)
    save(tmp_path, 2)
    last = tmp_path / "last.ckpt"
    content = {"truncated": last.read_bytes()[:-100], "empty": b"", "foreign": b"# notes of mine"}[fault]
    last.write_bytes(content)
    save(tmp_path, 3)
    assert (step(last), step(tmp_path / "previous-last.ckpt")) == (3, 1)
    assert (tmp_path / "damaged-last.ckpt").read_bytes() == content
    last.write_bytes(content)
    save(tmp_path, 4)
    assert (tmp_path / "damaged-2-last.ckpt").read_bytes() == content


def test_code_in_a_checkpoint_is_not_run(tmp_path: Path) -> None:
    class Poison:
        def __reduce__(self) -> tuple[Any, ...]:
            return Path.touch, (tmp_path / "poisoned",)

    torch.save({**state(1), "callbacks": {"own": Poison()}}, tmp_path / "last.ckpt")
    assert "it may be code" in str(damage(tmp_path / "last.ckpt"))
    assert latest(tmp_path) is None
    assert not (tmp_path / "poisoned").exists()


def test_a_full_disk_leaves_what_was_there(small_disk: Path) -> None:
    save(small_disk, 1)
    before = (small_disk / "last.ckpt").read_bytes()
    with pytest.raises(DiskFull, match=r"No space left .*needs 8,000,000 bytes, and [\d,]+ bytes are free.*last\.ckpt"):
        AtomicCheckpointIO().save_checkpoint(state(2, 2_000_000), small_disk / "last.ckpt")
    assert [file.name for file in small_disk.iterdir()] == ["last.ckpt"]
    assert (small_disk / "last.ckpt").read_bytes() == before
