"""From a configuration to objects: data module, first stage, the two stages, samplers."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf, open_dict

from ldm_lightning.artifact import Artifact
from ldm_lightning.data.datamodule import DataModule
from ldm_lightning.errors import UserError
from ldm_lightning.experiment.best import announce_stale
from ldm_lightning.experiment.denoiser import denoiser, load_weights
from ldm_lightning.experiment.fit import check_fit
from ldm_lightning.experiment.guidance import guidance
from ldm_lightning.experiment.latent_data import show_pictures
from ldm_lightning.experiment.run_folder import first_stage_of
from ldm_lightning.experiment.saved import read_artifact, read_manifest
from ldm_lightning.experiment.stages import stage_of
from ldm_lightning.latent.autoencoder import Autoencoder
from ldm_lightning.latent.bottleneck import Identity
from ldm_lightning.latent.frozen import FrozenFirstStage
from ldm_lightning.training.first_stage import FirstStage
from ldm_lightning.training.latent_diffusion import LatentDiffusion
from ldm_lightning.training.optim import MakeOptimizer

__all__ = [
    "DATA_SHORTCUTS",
    "autoencoder_of",
    "check_first_stage",
    "check_one_first_stage",
    "data_module",
    "data_of_run",
    "derive",
    "first_stage",
    "frozen_first_stage",
    "latent_diffusion",
    "move_pictures",
    "resolve",
    "stands_alone",
    "trained_first_stage",
    "trains",
]

# Keys of data/*.yaml that exist to be short on the command line; the yaml spreads them to where they belong.
DATA_SHORTCUTS = ("root", "captions", "size", "pictures", "range", "percentile")


def data_module(config: DictConfig) -> DataModule:
    """The data module of ``config.data``."""
    node = OmegaConf.to_container(config.data, resolve=True, throw_on_missing=True)
    assert isinstance(node, dict)
    made: DataModule = instantiate({key: value for key, value in node.items() if key not in DATA_SHORTCUTS})
    return made


def move_pictures(config: DictConfig, root: str | None) -> None:
    """Read the pictures of ``config.data`` from the folder ``root``, where they lie now, unless that is None."""
    if root is not None:
        config.data.root = config.data.source.root = str(Path(root).absolute())


def data_of_run(config: DictConfig, root: str | None = None) -> DataModule:
    """The pictures that a run was trained on, be it by way of cached latents.

    Args:
        config: of the run; left as it is.
        root: where their files lie now, if they have moved.
    """
    config = config.copy()
    show_pictures(config)
    move_pictures(config, root)
    return data_module(config)


def derive(config: DictConfig, data: DataModule) -> None:
    """Fill in ``config.derived``: what the data and the first stage decide and nobody should type.

    Raises:
        UserError: the first stage does not fit the data, or a class has a name that cannot be kept.
    """
    data.check_trainable()
    channels, height, width = data.shape
    for name in data.class_names:
        if "${" in name:  # a stranger's data could read the environment by it
            raise UserError(f"the class '{name}' would be filled in like a setting of ours: give it another name")
    facts = {
        "channels": channels,
        "height": height,
        "width": width,
        "num_classes": data.num_classes,
        "class_names": list(data.class_names),
        "conditions": list(data.conditions(1)),
        "data": data.fingerprint,
        "contents": data.contents,
    }
    with open_dict(config):
        config.derived = facts
        config.derived.update(stage_of(config.stage).derive(config, data))


def check_one_first_stage(config: DictConfig) -> None:
    """Refuse an architecture beside that of a trained first stage."""
    if {"run", "autoencoder"} <= set(config.first_stage.keys()):
        raise UserError(
            "first_stage=trained keeps the architecture of first_stage.run: leave first_stage.autoencoder... out, or "
            "train another by first_stage=kl_f4 or its kin"
        )


def trained_first_stage(config: DictConfig, data: DataModule) -> dict[str, Any]:
    """The manifest of ``config.first_stage.run``, once it is seen to suit the data.

    Raises:
        UserError: likewise as :func:`check_first_stage`, or there is none.
    """
    place = first_stage_of(config)
    trained = read_manifest(place, "first_stage")
    announce_stale(place)
    check_first_stage(config.first_stage.run, trained, config, data)
    return trained


def stands_alone(config: DictConfig) -> bool:
    """Whether a second stage stands on an autoencoder of its own configuration, which then has no weights."""
    return "autoencoder" in config.first_stage


def autoencoder_of(config: DictConfig) -> Autoencoder:
    """The untrained autoencoder that ``config.first_stage`` describes."""
    made: Autoencoder = instantiate(config.first_stage.autoencoder)
    return made


def trains(autoencoder: Autoencoder) -> bool:
    """Whether there is anything to learn: a weight, or the state of a bottleneck."""
    return any(True for _ in autoencoder.parameters()) or not isinstance(autoencoder.bottleneck, Identity)


def check_first_stage(run: str, trained: Mapping[str, Any], config: DictConfig, data: DataModule) -> None:
    """Check that a first stage suits the data.

    Args:
        run: what the user calls it.
        trained: its manifest.
        config: with the data's node ``data``.
        data: made of that.

    Raises:
        UserError: it was trained on pictures that would be tested on, or on pictures of other channels.
    """
    before = trained["config"]["derived"]
    splits = {key: trained["config"]["data"][key] for key in ("validation", "test")}
    if before["contents"] == data.contents and splits != {key: config.data[key] for key in splits}:
        given = " ".join(f"data.{key}={value}" for key, value in splits.items())
        raise UserError(
            f"the first stage was trained on another split of these pictures, so it knows some that would be "
            f"tested on: add {given}"
        )
    if before["channels"] != data.shape[0]:
        raise UserError(
            f"the first stage {run} was trained on pictures with {before['channels']} channels, "
            f"but these data have {data.shape[0]}: set data.transform.channels={before['channels']}, "
            "or train another first stage"
        )


def resolve(config: DictConfig) -> dict[str, Any]:
    """The configuration as plain values; this is what run folders and artifacts keep."""
    plain = OmegaConf.to_container(config, resolve=True, throw_on_missing=True)
    assert isinstance(plain, dict)
    return {str(key): value for key, value in plain.items()}


def _optimizer(config: DictConfig) -> MakeOptimizer:
    make: MakeOptimizer = instantiate(config.optim)
    _check_optimizer(make, "optim")
    return make


def _check_optimizer(make: MakeOptimizer, key: str) -> None:
    try:
        make([torch.nn.Parameter(torch.zeros(1))])
    except (TypeError, ValueError) as error:
        raise UserError(f"{key}: {error}") from error


def first_stage(config: DictConfig, autoencoder: Autoencoder | None = None) -> FirstStage:
    """The first stage in training.

    Args:
        config: the whole configuration.
        autoencoder: instead of a new one.

    Raises:
        UserError: settings that cannot be, or pictures of a size that a part of the loss cannot take.
    """
    node, optimizer = config.first_stage, _optimizer(config)
    autoencoder = autoencoder or autoencoder_of(config)
    if not trains(autoencoder):
        raise UserError("this first stage has nothing to train: use it by stage=latent_diffusion first_stage=identity")
    module = FirstStage(
        autoencoder=autoencoder,
        loss=instantiate(node.loss),
        optimizer=optimizer,
        learning_rate=instantiate(config.learning_rate),
        regularizers={name: instantiate(part) for name, part in (node.get("regularizers") or {}).items() if part},
        adversary=instantiate(node.get("adversary"), _convert_="object"),
        seed=config.seed,
    )
    picture = torch.zeros(1, config.derived.channels, config.derived.height, config.derived.width)
    with torch.no_grad():
        if module.loss.perceptual is not None:
            module.loss.perceptual(picture, picture)
        balanced = {"adversary": module.adversary} | {
            f"regularizers.{name}": part for name, part in module.regularizers.items()
        }
        for name, part in balanced.items():
            if getattr(part, "balance", None) is not None and str(config.trainer.precision).startswith("16"):
                raise UserError(
                    f"first_stage.{name}.balance compares gradients that float16 cannot hold: set "
                    f"trainer.precision=bf16-mixed or 32-true, or first_stage.{name}.balance=null"
                )
        if module.adversary is not None:
            _check_optimizer(partial(optimizer, **module.adversary.optimizer), "first_stage.adversary.optimizer")
            module.adversary.discriminator.eval()(picture)
            module.adversary.discriminator.train()
    return module


def latent_diffusion(config: DictConfig, run: str | Path | None) -> LatentDiffusion:
    """The second stage in training, in the latent space of the first stage in ``run``, or of one without weights."""
    if run is None:
        autoencoder = autoencoder_of(config)
        frozen = FrozenFirstStage(autoencoder, autoencoder.bottleneck.scale({}))
    else:
        frozen = frozen_first_stage(read_artifact(run, "first_stage"))
    derived = config.derived
    latent_shape = frozen.latent_shape((derived.channels, derived.height, derived.width))
    module = LatentDiffusion(
        denoiser=denoiser(config),
        objective=instantiate(config.objective, _convert_="all"),  # else its terms, dataclasses, become nodes
        first_stage=frozen,
        latent_shape=latent_shape,
        sampler=instantiate(config.sampler),
        guidance=guidance(config),
        optimizer=_optimizer(config),
        learning_rate=instantiate(config.learning_rate),
        seed=config.seed,
    )
    check_fit(module)
    return module


def frozen_first_stage(artifact: Artifact) -> FrozenFirstStage:
    """A trained first stage as the second stage holds it."""
    autoencoder = autoencoder_of(OmegaConf.create(artifact.manifest["config"]))
    load_weights(autoencoder, artifact, "the first stage")
    return FrozenFirstStage(autoencoder, autoencoder.bottleneck.scale(artifact.manifest["statistics"]))
