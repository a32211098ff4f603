"""Where a table of captions is looked for, and what a run records of it."""

from __future__ import annotations

import zipfile
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from ldm_lightning.experiment.launch import make_absolute


@pytest.mark.parametrize("root", ["folder", "packed.zip"])
def test_a_table_from_the_current_folder_is_recorded_with_its_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, root: str
) -> None:
    """One beside the pictures moves along with them, and stays as it was given."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder").mkdir()
    for place in (tmp_path, tmp_path / "folder"):
        (place / "both.csv").touch()
    (tmp_path / "here.csv").touch()
    with zipfile.ZipFile(tmp_path / "packed.zip", "w") as archive:
        archive.writestr("both.csv", "")
        archive.writestr("a/1.png", "")
    recorded = {"here.csv": str(tmp_path / "here.csv"), "both.csv": "both.csv", "no.csv": "no.csv", ".txt": ".txt"}
    for given, expected in recorded.items():
        config = OmegaConf.create({"data": {"root": root, "captions": given}, "first_stage": {}})
        make_absolute(config)
        assert (config.data.root, config.data.captions) == (str(tmp_path / root), expected)
