"""``ldm export``: a first stage in the format of diffusers, where diffusers has its architecture.

An imported autoencoder is written as it was. One that was trained here also says how its latents are standardized: the
configuration of AutoencoderKL holds mean and deviation of every channel, with ``scaling_factor`` 1 (diffusers'
convention is ``(z - latents_mean) * scaling_factor / latents_std``); those of the others hold one factor for all.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from ldm_lightning.errors import UserError
from ldm_lightning.experiment import build
from ldm_lightning.experiment.best import announce_stale
from ldm_lightning.experiment.run_folder import check_writable
from ldm_lightning.experiment.saved import read_artifact
from ldm_lightning.interop.diffusers_format import model_of, write_model

__all__ = ["main"]


def main(config: DictConfig) -> None:
    """Write the folder, and say what became of the scale."""
    folder = Path(config.output).absolute()
    artifact = read_artifact(config.run, "first_stage")
    announce_stale(config.run)
    if not folder.name or folder.is_file():
        raise UserError(f"output={config.output} is no folder to write a model into: choose another")
    check_writable(folder, "choose another output=...")
    autoencoder = build.frozen_first_stage(artifact).autoencoder
    if "source" in artifact.manifest["config"]:
        changes: dict[str, Any] = {}
        said = "as it was imported; the statistics measured here stay with the run"
    else:
        changes, said = _scale(getattr(autoencoder.encoder, "model", ""), artifact.manifest["statistics"])
    model = model_of(autoencoder, changes)
    write_model(model, folder)
    name = type(model).__name__
    print(f"{name}: {folder}\nscale: {said}")
    print(f"read it: diffusers.{name}.from_pretrained({str(folder)!r})")


def _scale(model: str, statistics: Mapping[str, Any]) -> tuple[dict[str, Any], str]:
    """What the configuration of ``model`` can hold of our standardization, and a line about it."""
    mean, std = statistics["mean"], statistics["std"]
    factor = len(std) / sum(std)
    if model == "AutoencoderKL":
        said = "latents_mean and latents_std by channel, with scaling_factor=1"
        changes = {"scaling_factor": 1.0, "shift_factor": None, "latents_mean": mean, "latents_std": std}
        return changes, f"{said}; readers that know a factor alone need {factor:.5g}, the inverse of the mean deviation"
    means, deviations = (", ".join(f"{value:.5g}" for value in values) for values in (mean, std))
    return {"scaling_factor": factor}, (
        f"scaling_factor={factor:.5g}, the inverse of the mean deviation; {model} cannot hold that the channels have "
        f"means [{means}] and deviations [{deviations}]"
    )
