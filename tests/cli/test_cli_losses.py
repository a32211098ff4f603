"""Losses as a configuration builds them: impossible ones are refused in one line before anything is trained."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from ldm_lightning.artifact import read_artifact
from ldm_lightning.errors import UserError
from ldm_lightning.experiment import build
from ldm_lightning.experiment.load import load_first_stage
from tests.cli.test_cli_config import compose

TINY = ["first_stage=kl_f4_tiny", "first_stage.autoencoder.encoder.channels=[8,8,8]"]
needs_weights = pytest.mark.skipif(
    importlib.util.find_spec("stlpips_pytorch") is None, reason="needs the extra offline"
)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["loss=gan", "+size=16"], r"16x16 are too small for a discriminator with layers=3.*discriminator\.layers=2"),
        (["loss=gan", "optim._target_=torch.optim.SGD", "~optim.betas"], r"first_stage\.adversary\.optimizer: .*betas"),
        (["loss=gan", "first_stage.adversary.optimizer.lr=-1"], r"first_stage\.adversary\.optimizer: .*-1"),
        (["loss=gan", "first_stage.adversary.join=20000"], r"start=20000 .* before join=20000"),
        (["loss=gan", "first_stage.adversary.balance.cap=0"], r"cap=0"),
        (["regularizer=va_vae", "trainer.precision=16-mixed"], r"first_stage\.regularizers\.alignment\.balance=null"),
        (["first_stage.loss.kl_weight=-1"], r"kl_weight=-1"),
        (["regularizer=equivariance", "first_stage.regularizers.equivariance.least=2"], r"least=2"),
        pytest.param(["loss=perceptual", "+size=16"], r"16x16 are too small.*resize=64", marks=needs_weights),
        pytest.param(
            ["loss=perceptual", "first_stage.loss.perceptual.network=res"], "choose one of", marks=needs_weights
        ),
    ],
)
def test_impossible_losses_are_refused_before_training(overrides: list[str], message: str) -> None:
    size = 16 if "+size=16" in overrides else 32
    config = compose("train", *TINY, *[text for text in overrides if text != "+size=16"])
    config.derived.height = config.derived.width = size
    with pytest.raises(Exception, match=message) as error:
        build.first_stage(config)
    cause = error.value if isinstance(error.value, UserError) else error.value.__cause__
    assert isinstance(cause, UserError)
    assert "\n" not in str(cause)


@needs_weights
def test_everything_at_once_is_built() -> None:
    config = compose("train", *TINY, "loss=perceptual_gan", "regularizer=equivariance", "optim.lr=0.5")
    module = build.first_stage(config)
    assert module.adversary is not None
    assert module.adversary.discriminator.training
    assert module.adversary.optimizer == {"lr": 0.5, "betas": [0.5, 0.9]}
    assert set(module.regularizers) == {"equivariance"}
    named = {name.split(".")[0] for name in module.state_dict()}
    assert named == {"autoencoder", "adversary"}  # the perceptual network is in no checkpoint


def test_a_trained_first_stage_needs_no_training_networks(
    first_stage_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """``ldm reconstruct`` must not ask for the packages that the loss needed."""
    artifact = read_artifact(first_stage_run)
    config = OmegaConf.create(artifact.manifest["config"])
    extra = compose("train", "loss=perceptual_gan", "regularizer=alignment").first_stage
    for key in ("loss", "adversary", "regularizers"):
        OmegaConf.update(config.first_stage, key, extra[key], force_add=True)
    artifact.manifest["config"] = OmegaConf.to_container(config)
    monkeypatch.setattr("ldm_lightning.experiment.load.read_artifact", lambda *args: artifact)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    trained = load_first_stage(first_stage_run)
    assert trained.module.adversary is None
    assert trained.config.first_stage.adversary.weight == 0.5  # what is kept says how it was trained
