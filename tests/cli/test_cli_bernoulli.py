"""Both stages with bits, by the command line: trained, sampled, measured."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from ldm_lightning.diffusion.path import BernoulliPath
from ldm_lightning.experiment.load import load_latent_diffusion
from ldm_lightning.output import RECORD
from ldm_lightning.rng import Streams
from tests.conftest import TINY_LATENT_DIFFUSION, Result

pytestmark = pytest.mark.slow


def pictures_of(folder: Path) -> list[bytes]:
    return [file.read_bytes() for file in sorted(folder.glob("[0-9]*.png"))]


def test_samples_are_the_same_in_any_batch(
    bernoulli_latent_diffusion_run: Path, ldm: Callable[..., Result], tmp_path: Path
) -> None:
    for size in (1, 3, 10):
        done = ldm(
            "sample",
            f"run={bernoulli_latent_diffusion_run}",
            *["n=5", "steps=4", "scale=2", f"batch_size={size}", f"output={tmp_path}/{size}"],
        )
        assert done.code == 0, done.err
    assert len(pictures_of(tmp_path / "1")) == 5
    assert len(set(pictures_of(tmp_path / "1"))) > 1
    assert pictures_of(tmp_path / "1") == pictures_of(tmp_path / "3") == pictures_of(tmp_path / "10")
    assert "BernoulliAncestral, 4 evaluations" in (tmp_path / "1" / RECORD).read_text()


def test_it_is_measured_with_its_bound(bernoulli_latent_diffusion_run: Path, ldm: Callable[..., Result]) -> None:
    done = ldm(
        "evaluate",
        f"run={bernoulli_latent_diffusion_run}",
        *["n=8", "steps=3", "likelihood=bound", "likelihood.steps=20", "extractor=tiny", "judge=false"],
    )
    assert done.code == 0, done.err
    figures = json.loads((bernoulli_latent_diffusion_run / "evaluation" / "metrics.json").read_text())["figures"]
    (bound,) = (row["value"] for name, row in figures.items() if name.startswith("nll_bound"))
    assert bound > 0


def test_what_the_model_sees_are_bits(bernoulli_latent_diffusion_run: Path, pictures: Path) -> None:
    module = load_latent_diffusion(bernoulli_latent_diffusion_run).module
    assert isinstance(module.denoiser.path, BernoulliPath)
    z0 = module.first_stage.encode(torch.rand(4, 3, 16, 16), Streams(0, torch.arange(4)))
    assert z0.shape[1:] == module.latent_shape == (8, 4, 4)
    assert set(z0.unique().tolist()) == {-1.0, 1.0}


def test_bits_may_also_be_diffused_as_numbers(
    pictures: Path, bernoulli_first_stage_run: Path, ldm: Callable[..., Result], tmp_path: Path
) -> None:
    """Analog bits, on a Gaussian path."""
    done = ldm(
        *["train", "data=image_folder", f"data.root={pictures}", f"first_stage.run={bernoulli_first_stage_run}"],
        *[*TINY_LATENT_DIFFUSION, f"runs={tmp_path}", "name=analog"],
    )
    assert done.code == 0, done.err
