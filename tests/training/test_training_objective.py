"""Objectives from the command line: what is trained, logged and kept, and that the artifact alone is enough to draw."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from PIL import Image

from ldm_lightning.artifact import read_artifact
from ldm_lightning.errors import UserError
from ldm_lightning.experiment.denoiser import denoiser
from ldm_lightning.loggers.csv_log import read_metrics
from tests.conftest import TINY_LATENT_DIFFUSION, Result

Ldm = Callable[..., Result]


@pytest.fixture(scope="module")
def train(ldm: Ldm, pictures: Path, first_stage_run: Path, tmp_path_factory: pytest.TempPathFactory):
    """Trains once with these overrides; later calls get the same run."""
    runs, made = tmp_path_factory.mktemp("objectives"), {}
    data = ["data=image_folder", f"data.root={pictures}", f"first_stage.run={first_stage_run}"]

    def train(*overrides: str) -> Path:
        if overrides not in made:
            name = f"run{len(made)}"
            network = "denoiser" if any(text.startswith("denoiser=") for text in overrides) else "none"
            tiny = [text for text in TINY_LATENT_DIFFUSION if not text.startswith(network)]
            done = ldm("train", *data, *tiny, f"runs={runs}", f"name={name}", *overrides)
            assert done.code == 0, done.err
            made[overrides] = runs / name
        return made[overrides]

    return train


@pytest.fixture
def sheet(ldm: Ldm, tmp_path: Path):
    """Draws from a run, and returns the pixels."""

    def sheet(run: Path, *overrides: str) -> np.ndarray:
        folder = tmp_path / f"drawn{len(list(tmp_path.glob('drawn*')))}"
        done = ldm("sample", f"run={run}", "n=4", f"output={folder}", *overrides)
        assert done.code == 0, done.err
        return np.stack([np.asarray(Image.open(file)) for file in sorted(folder.glob("[0-9]*.png"))])

    return sheet


def metrics(run: Path) -> dict[str, list[float]]:
    return {name: [value for _, value in points] for name, points in read_metrics(run / "metrics.csv").items()}


def state(run: Path) -> dict[str, torch.Tensor]:
    return torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]


IMPORTANCE = ("+objective/importance=second_moment", "objective.importance.bins=2", "objective.importance.memory=4")
SELF = ("objective.self_conditioning=0.5",)


def test_importance_changes_training_not_validation(train, sheet):
    plain, sampled = train(), train(*IMPORTANCE)
    kept = state(sampled)
    assert (kept["objective.importance.count"] == 4).all()
    assert (kept["objective.importance.second_moment"] > 0).all()
    ours, theirs = metrics(sampled), metrics(plain)
    assert ours.keys() == theirs.keys()
    assert ours["train/loss"][0] == pytest.approx(theirs["train/loss"][0])  # uniform until the bins are full
    assert ours["train/loss"][2:] != theirs["train/loss"][2:]
    frozen = train(*IMPORTANCE, "optim.lr=1.0e-12")
    before, after = metrics(frozen)["val/loss"]
    assert before == pytest.approx(after, rel=1e-5)  # though times have moved in between
    assert not any("importance" in name for name in read_artifact(sampled).weights)
    assert sheet(sampled).shape[0] == 4


def test_annealed_times_are_validated_at_their_last_values(train):
    # The output stays zero, so only by a weight does the loss depend on the times.
    still = ("optim.lr=1.0e-12", "objective.weighting._target_=ldm_lightning.diffusion.objective.MinSnr")
    last = ("objective=flow_annealed", "objective.time_law.mean=[3.0,0.0]", "objective.time_law.steps=[0,3]")
    annealed, fixed = metrics(train(*last, *still)), metrics(train(*still))
    assert annealed["val/loss"] == pytest.approx(fixed["val/loss"], rel=1e-5)
    assert annealed["train/loss"][0] != pytest.approx(fixed["train/loss"][0], rel=1e-3)
    assert annealed["train/loss"][3:] == pytest.approx(fixed["train/loss"][3:], rel=1e-5)
    assert state(train(*last, *still))["objective.time_law.step"] == 6


def test_terms_are_logged_by_name_and_add_up(train):
    weights = {"denoising": 1.0, "direction": 0.5, "contrastive": -0.1}
    run = train(
        "+objective/term=[direction,contrastive]",
        "objective.terms.direction.weight=0.5",
        "objective.terms.contrastive.strength=0.1",
    )
    logged = metrics(run)
    for stage in ("train", "val"):
        parts = [weight * np.array(logged[f"{stage}/{name}"]) for name, weight in weights.items()]
        assert logged[f"{stage}/loss"] == pytest.approx(np.sum(parts, axis=0), rel=1e-4)
    assert "train/denoising" not in metrics(train())


@pytest.mark.parametrize("option", ["elbo_importance", "flow_direction", "flow_contrastive"])
def test_options_train(train, option):
    assert np.isfinite(metrics(train(f"objective={option}", "path=cosine", "prediction=velocity"))["train/loss"]).all()


def test_a_self_conditioned_model_is_drawn_from_its_artifact(train, sheet):
    run = train(*SELF)
    weights = read_artifact(run).weights
    (first,) = [name for name in weights if name.endswith(".patchify.weight")]
    width = read_artifact(train()).weights[first.removeprefix("network.")].shape[1]
    assert weights[first].shape[1] == 2 * width
    seen = weights[first][:, width:].abs().sum()
    assert seen > 0
    sheets = [sheet(run), sheet(run, "scale=3"), sheet(run, "sampler=heun", "steps=4", "scale=3"), sheet(train())]
    assert all((one != other).any() for n, one in enumerate(sheets) for other in sheets[:n] if one.shape == other.shape)
    assert (sheet(run, "batch_size=1") == sheet(run, "batch_size=4")).all()
    assert (sheet(run / "export") == sheets[0]).all()


class Fixed(torch.nn.Module):
    """A backbone that answers as many channels as it is given."""

    def __init__(self, in_channels: int, vector_width: int | None, token_width: int | None) -> None:
        super().__init__()


def test_a_network_that_cannot_be_widened_is_refused():
    config = OmegaConf.create(
        {
            "condition": {"_target_": "ldm_lightning.nn.conditioner.NoCondition"},
            "derived": {"conditions": []},
            "objective": {"self_conditioning": 0.5},
            "prediction": {"_target_": "ldm_lightning.diffusion.prediction.Flow"},
            "denoiser": {"_target_": f"{__name__}.Fixed", "in_channels": 4},
        }
    )
    with pytest.raises(UserError, match="Fixed takes no out_channels: do without"):
        denoiser(config)


def test_a_u_net_is_self_conditioned_too(train, sheet):
    run = train(*SELF, "denoiser=unet_tiny", "denoiser.channels=[8,8]", "denoiser.heads=2")
    assert sheet(run, "scale=2").shape[0] == 4


def test_autoguidance_mixes_models_with_and_without_self_conditioning(train, sheet):
    run, plain = train(*SELF), train()
    for main, other in ((run, plain), (plain, run), (run, run)):
        guided = sheet(main, "guidance=autoguidance", f"guidance.run={other}", "scale=3")
        assert guided.shape[0] == 4
    own = sheet(run, "guidance=autoguidance", f"guidance.run={run}", "scale=3")
    assert np.abs(own.astype(int) - sheet(run, "scale=1").astype(int)).max() <= 1  # guided by itself is unguided


def test_likelihood_of_a_self_conditioned_model_says_what_it_measures(train, ldm):
    run = train(*SELF)
    done = ldm("evaluate", f"run={run}", "judge=false", "likelihood=bound", "likelihood.steps=5")
    assert done.code == 0, done.err
    written = json.loads((run / "evaluation" / "metrics.json").read_text())
    assert "unguided, without self-conditioning, standard error" in written["protocol"]["likelihood"]
    plain = train()
    assert ldm("evaluate", f"run={plain}", "judge=false", "likelihood=bound", "likelihood.steps=5").code == 0
    written = json.loads((plain / "evaluation" / "metrics.json").read_text())
    assert "unguided, standard error" in written["protocol"]["likelihood"]


def test_a_self_conditioned_model_refuses_an_adaptive_solver(train, ldm):
    run = train(*SELF)
    for verb in ("sample", "evaluate"):
        done = ldm(verb, f"run={run}", "sampler=adaptive")
        assert done.code == 2
        assert "choose another sampler" in done.err
        assert "training the judge" not in done.err  # before any work
