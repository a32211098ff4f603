"""``data.range`` from the command line to the pictures that are shown."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from ldm_lightning.experiment.run_folder import differences
from tests.conftest import TINY_FIRST_STAGE, refused


def test_runs_from_before_a_setting_go_on_where_it_is_null():
    before = {"data": {"size": 8}}
    assert differences(before, {"data": {"size": 8, "range": None}}) == []
    assert differences(before, {"data": {"size": 8, "range": [0, 9]}}) == ["data.range: (not set) -> [0, 9]"]


@pytest.mark.slow
def test_training_on_12_bits(ldm, tmp_path):
    root = tmp_path / "scans"
    root.mkdir()
    values = np.linspace(0, 4095, 256).round().astype(np.uint16)
    for i in range(40):
        Image.fromarray(np.roll(values, i).reshape(16, 16)).save(root / f"{i:02}.png")
    command = ["train", "data=image_folder", f"data.root={root}", *TINY_FIRST_STAGE, f"runs={tmp_path}", "name=run"]
    for wrong in ("data.range=[9,0]", "data.range=7", "data.percentile=[0,101]"):
        refused(ldm(*command, wrong), wrong)
    refused(ldm(*command, "data.range=[a,b]"), "data.range=", "no pair of numbers")
    refused(ldm(*command, "data.range=[0,1]", "data.percentile=[0,1]"), "set one of them")
    result = ldm(*command, "data.range=[0,4095]")
    assert result.code == 0, result.err
    assert "tenth of the range" not in result.err
    shown = tmp_path / "shown"
    result = ldm("reconstruct", f"run={tmp_path / 'run'}", f"pictures={root}", f"output={shown}")
    assert result.code == 0, result.err
    assert np.asarray(Image.open(shown / "sheet.png")).max() == 255  # white, as the run's range says
