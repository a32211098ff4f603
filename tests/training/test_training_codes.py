"""Bottlenecks with a state, or terms over the batch: ranks, accumulation and kills must not show in them."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest
import torch

from ldm_lightning.artifact import read_artifact
from tests.conftest import TINY_FIRST_STAGE
from tests.training.test_training_ddp import train
from tests.training.test_training_resume import killed_is_never_killed

pytestmark = pytest.mark.slow

FAMILIES = {
    "vector": [
        "first_stage=vq_f4_tiny",
        "first_stage.autoencoder.bottleneck.codes=64",
        "first_stage.autoencoder.bottleneck.decay=0.8",
        "first_stage.autoencoder.bottleneck.restart_every=2",
        "first_stage.autoencoder.bottleneck.dead=0.5",
    ],
    "spherical": ["first_stage=bsq_f4_tiny"],
    "gumbel": ["first_stage=gumbel_f4_tiny", "first_stage.autoencoder.bottleneck.steps=5"],
}


def command(pictures: Path, name: str) -> list[str]:
    return ["data=image_folder", f"data.root={pictures}", *TINY_FIRST_STAGE, *FAMILIES[name]]


def close(a: Path, b: Path) -> None:
    theirs = read_artifact(b).weights
    for name, weight in read_artifact(a).weights.items():
        torch.testing.assert_close(weight, theirs[name], rtol=1e-3, atol=1e-4, msg=lambda text: f"{name}: {text}")  # noqa: B023


@pytest.mark.parametrize("name", FAMILIES)
def test_two_ranks_are_one_rank(name: str, pictures: Path, tmp_path: Path) -> None:
    one = train(tmp_path, "one", *command(pictures, name))
    two = train(tmp_path, "two", *command(pictures, name), "trainer.devices=2", "trainer.strategy=ddp")
    close(one, two)


@pytest.mark.parametrize("name", ["vector", "gumbel"])
def test_accumulated_batches_are_one_batch(name: str, pictures: Path, tmp_path: Path) -> None:
    whole = train(tmp_path, "whole", *command(pictures, name), "trainer.max_steps=4", "trainer.val_check_interval=100")
    halves = train(
        tmp_path,
        "halves",
        *command(pictures, name),
        *["trainer.max_steps=4", "trainer.val_check_interval=100"],
        *["data.batch_size=8", "trainer.accumulate_grad_batches=2"],
    )
    close(whole, halves)


def test_a_killed_run_keeps_its_book(pictures: Path, tmp_path: Path) -> None:
    more = ["trainer.max_steps=14", "trainer.val_check_interval=5", "callbacks.checkpoints.every_n_steps=3"]
    killed_is_never_killed(tmp_path, [*command(pictures, "vector"), *more], [("batch", 8, signal.SIGKILL)])
