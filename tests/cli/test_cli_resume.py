"""Runs that cannot simply go on: damaged checkpoints are named and kept, and a full disk loses nothing."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from tests.conftest import TINY_FIRST_STAGE, Result, refused


@pytest.fixture
def run(first_stage_run: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(first_stage_run, tmp_path / "runs" / "first"))


def longer(pictures: Path, run: Path) -> list[str]:
    """The command that trains the run two steps further."""
    tiny = [text for text in TINY_FIRST_STAGE if not text.startswith("trainer.max_steps")]
    data = ["data=image_folder", f"data.root={pictures}"]
    return ["train", *data, *tiny, f"runs={run.parent}", f"name={run.name}", "trainer.max_steps=8"]


def flip(file: Path) -> bytes:
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 255
    file.write_bytes(content)
    return bytes(content)


def step(run: Path) -> int:
    return int(torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)["global_step"])


def test_a_damaged_checkpoint_is_named_and_kept(ldm: Callable[..., Result], pictures: Path, run: Path) -> None:
    content = flip(run / "checkpoints" / "last.ckpt")
    result = ldm(*longer(pictures, run))
    assert result.code == 0, result.err
    assert "last.ckpt is damaged (wrong checksum" in result.err
    assert "kept aside: checkpoints/damaged-last.ckpt" in result.err
    assert "resuming from previous-last.ckpt" in result.err
    assert (run / "checkpoints" / "damaged-last.ckpt").read_bytes() == content
    assert step(run) == 8


def test_a_run_starts_anew_only_when_told_to(ldm: Callable[..., Result], pictures: Path, run: Path) -> None:
    checkpoints = run / "checkpoints"
    flip(checkpoints / "last.ckpt")
    (checkpoints / "previous-last.ckpt").write_bytes(b"")  # as after a power cut
    before = {file.name: file.read_bytes() for file in checkpoints.iterdir()}
    refused(ldm(*longer(pictures, run)), "last.ckpt is damaged", "previous-last.ckpt is empty", "resume=anew")
    assert {file.name: file.read_bytes() for file in checkpoints.iterdir()} == before
    refused(ldm(*longer(pictures, run), "resume=again"), "resume=again is none of auto, anew")
    result = ldm(*longer(pictures, run), "resume=anew")
    assert result.code == 0, result.err
    for name in ("last.ckpt", "previous-last.ckpt"):
        assert (checkpoints / f"damaged-{name}").read_bytes() == before[name]
    assert (checkpoints / "before-best.ckpt").read_bytes() == before["best.ckpt"]
    assert (run / "before-metrics.csv").is_file()
    assert step(run) == 8


def test_a_whole_run_is_not_given_up(ldm: Callable[..., Result], pictures: Path, run: Path) -> None:
    before = (run / "checkpoints" / "last.ckpt").read_bytes()
    refused(ldm(*longer(pictures, run), "resume=anew"), "is whole", "leave resume=anew out")
    assert (run / "checkpoints" / "last.ckpt").read_bytes() == before


def test_a_checkpoint_of_another_model_is_refused(ldm: Callable[..., Result], pictures: Path, run: Path) -> None:
    file = run / "checkpoints" / "last.ckpt"
    state = torch.load(file, weights_only=True)
    state["state_dict"]["stranger"] = torch.zeros(1)
    torch.save(state, file)
    refused(ldm(*longer(pictures, run)), "belongs to another model (it has stranger besides)")
    torch.save({"weights": torch.zeros(1)}, file)
    result = ldm(*longer(pictures, run))
    assert result.code == 0, result.err
    assert "is not the training state of a run" in result.err


def test_a_full_disk_is_one_line_and_loses_nothing(
    ldm: Callable[..., Result], pictures: Path, first_stage_run: Path, small_disk: Path
) -> None:
    resize(small_disk, 2**30)
    run = Path(shutil.copytree(first_stage_run, small_disk / "first"))
    checkpoint = (run / "checkpoints" / "last.ckpt").stat().st_size
    resize(small_disk, shutil.disk_usage(small_disk).used + checkpoint // 2)
    before = (run / "checkpoints" / "last.ckpt").read_bytes()
    refused(ldm(*longer(pictures, run)), "No space left on device", "bytes are free", "make room")
    assert (run / "checkpoints" / "last.ckpt").read_bytes() == before
    assert not list(run.rglob("scratch.json"))  # half files
    resize(small_disk, 2**30)
    result = ldm(*longer(pictures, run))
    assert result.code == 0, result.err
    assert step(run) == 8


def resize(disk: Path, size: int) -> None:
    subprocess.run(["mount", "-o", f"remount,size={size}", str(disk)], check=True)
