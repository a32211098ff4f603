"""What a first stage has measured on its training pictures standardizes the latents of pictures it has never seen."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf
from torch import Tensor

from ldm_lightning.experiment import build
from ldm_lightning.experiment.load import load_first_stage
from ldm_lightning.rng import Streams
from tests.conftest import Result

MEAN, STD = 0.05, 0.05


def is_standardized(z: Tensor) -> bool:
    """Whether every channel of (N, C, h, w) has mean 0 and deviation 1, but for the law's tolerance."""
    channels = z.double().transpose(0, 1).flatten(1)
    return bool((channels.mean(1).abs() < MEAN).all() and ((channels.std(1) - 1).abs() < STD).all())


@pytest.mark.slow
def test_held_out_latents_are_standardized(tmp_path: Path, ldm: Callable[..., Result]) -> None:
    """A KL first stage of 200 steps; N = 1,978 held-out digits of 5,000, of 8x8 places each."""
    done = ldm(
        *["train", "experiment=mnist5k_first_stage", f"runs={tmp_path}", "name=run", "trainer.max_steps=200"],
        *["trainer.accelerator=cpu", "trainer.devices=1", "trainer.enable_progress_bar=false", "data.num_workers=0"],
    )
    assert done.code == 0, done.err
    artifact = load_first_stage(tmp_path / "run").artifact
    statistics = artifact.manifest["statistics"]
    first_stage = build.frozen_first_stage(artifact)
    data = build.data_module(OmegaConf.create(artifact.manifest["config"]))
    held_out = torch.cat(
        [
            first_stage.encode(batch.x, Streams(1, batch.index))
            for split in ("validation", "test")
            for batch in data.loader(split)
        ]
    )
    assert len(held_out) + statistics["n"] == 5000
    assert is_standardized(held_out)
    # The law can fail: on a tenth too much, and on latents that were left raw.
    assert not is_standardized(1.1 * held_out)
    assert not is_standardized(first_stage.scale.unstandardize(held_out))
