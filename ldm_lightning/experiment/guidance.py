"""From a configuration to a guidance: names become numbers, a run becomes a network, what cannot work is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

from ldm_lightning.data.dataset import encode_caption
from ldm_lightning.diffusion.guidance import Autoguidance, ClassifierFree, Guidance, Interval, NegativeCondition
from ldm_lightning.errors import UserError
from ldm_lightning.experiment.condition import class_number
from ldm_lightning.experiment.denoiser import denoiser, load_weights
from ldm_lightning.experiment.saved import read_artifact, read_manifest
from ldm_lightning.experiment.schema import check

__all__ = ["autoguidance", "guidance"]


def guidance(config: DictConfig) -> Guidance:
    """The guidance of ``config.guidance`` for the second stage that ``config`` describes.

    Raises:
        UserError: it cannot work with this model: its null condition was never trained, or the model to be guided by
            is one of other latents.
    """
    check(config.guidance)
    node = OmegaConf.to_container(config.guidance, resolve=True, throw_on_missing=True)
    assert isinstance(node, dict)
    if "condition" in node:
        node["condition"] = _encoded(node["condition"], config)
    if "run" in node:
        _same_latents(config, str(node["run"]))
    made: Guidance = instantiate(node, _convert_="all")
    null = isinstance(made, ClassifierFree) or (isinstance(made, NegativeCondition) and not made.condition)
    if null and made.scale != 1 and not instantiate(config.condition).reads:  # type: ignore[attr-defined]
        raise UserError(
            f"guidance.scale={made.scale} changes nothing, since this model reads no condition: set it to 1, "  # type: ignore[attr-defined]
            "or train with a condition"
        )
    if null and made.scale != 1 and config.objective.get("condition_dropout") == 0:  # type: ignore[attr-defined]
        raise UserError(
            f"guidance.scale={made.scale} needs a model that was also trained without its condition, but "  # type: ignore[attr-defined]
            "objective.condition_dropout=0: train with objective.condition_dropout=0.1, set the scale to 1, "
            "or guide by another condition or model (guidance=negative, guidance=autoguidance)"
        )
    return made


def autoguidance(run: str, scale: float = 1.0, rescale: float = 0.0, interval: Interval | None = None) -> Autoguidance:
    """Guidance by the model trained in the folder ``run``, or kept in an artifact folder.

    Raises:
        UserError: there is none, or it is damaged.
    """
    artifact = read_artifact(run, "latent_diffusion")
    other = denoiser(OmegaConf.create(artifact.manifest["config"]))
    load_weights(other.network, artifact, run)
    name = f"{Path(run).name}, step {artifact.manifest['step']}, weights {artifact.manifest['sha256'][:12]}"
    return Autoguidance(other.eval().requires_grad_(False), scale, rescale, interval, name)


def _encoded(condition: dict[str, Any], config: DictConfig) -> dict[str, Any]:
    """A negative condition as numbers: class names and caption texts looked up, what is null left out."""
    encoders = {
        "class": lambda name: class_number(name, list(config.derived.class_names)),
        "caption": lambda text: encode_caption(str(text), config.data.caption_length).tolist(),
    }
    given = {name: value for name, value in condition.items() if value is not None}
    reads = instantiate(config.condition).reads
    for name in given:
        if name not in reads:
            raise UserError(
                f"guidance.condition.{name} is nothing this model reads (it reads {', '.join(reads) or 'no condition'})"
            )
    return {name: encoders[name](value) if name in encoders else value for name, value in given.items()}


def _same_latents(config: DictConfig, run: str) -> None:
    """Refuse a model to be guided by that lives in another latent space, on another path, or in other classes."""
    other = OmegaConf.create(read_manifest(run, "latent_diffusion")["config"])
    for what, keys in {
        "another latent shape": ("derived.latent_channels", "derived.height", "derived.width"),
        "the latents of another first stage": ("derived.first_stage",),
        "another path": ("path",),
        "other classes": ("derived.class_names",),
    }.items():
        if any(OmegaConf.select(config, key) != OmegaConf.select(other, key) for key in keys):
            raise UserError(
                f"guidance.run={run} was trained on {what} than this model: "
                "give a run that differs in its network or training only"
            )
