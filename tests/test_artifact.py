"""Copies of artifacts: whole, current, and without what lies beside them."""

from __future__ import annotations

from pathlib import Path

import torch

from ldm_lightning.artifact import copy_artifact, read_artifact, write_artifact


def test_a_copy_is_replaced_unless_it_is_the_same(tmp_path: Path) -> None:
    """The same weights with other statistics are another first stage."""
    run, copy = tmp_path / "run", tmp_path / "copy"
    weights = {"weight": torch.arange(3.0)}
    write_artifact(run / "export", "first_stage", weights, {"statistics": {"std": [1.0]}})
    (run / "export" / "evaluation").mkdir()
    copy_artifact(run, copy)
    assert {file.name for file in copy.iterdir()} == {"manifest.json", read_artifact(run).manifest["weights"]}
    before = (copy / "manifest.json").stat().st_ino
    copy_artifact(run, copy)
    assert (copy / "manifest.json").stat().st_ino == before
    write_artifact(run / "export", "first_stage", weights, {"statistics": {"std": [2.0]}})
    copy_artifact(run, copy)
    assert read_artifact(copy).manifest["statistics"] == {"std": [2.0]}
    (copy / "manifest.json").unlink()
    copy_artifact(run, copy)
    assert torch.equal(read_artifact(copy, "first_stage").weights["weight"], weights["weight"])
    assert {file.name for file in tmp_path.iterdir()} == {"run", "copy"}
