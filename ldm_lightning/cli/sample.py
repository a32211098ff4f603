"""``ldm sample``: pictures from a trained model."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

from ldm_lightning.callbacks.picture_grid import to_uint8
from ldm_lightning.diffusion.sampler import Sampler
from ldm_lightning.experiment.drawing import GRID, Drawing, find_folder
from ldm_lightning.experiment.load import TrainedLatentDiffusion, load_latent_diffusion
from ldm_lightning.experiment.run_folder import lock
from ldm_lightning.experiment.sampling import (
    CONDITIONS,
    Asked,
    choose_sampler,
    conditions_in_turn,
    describe,
    draw,
    encode_conditions,
)
from ldm_lightning.experiment.schema import check, check_numbers
from ldm_lightning.output import RECORD

__all__ = ["main"]


def main(config: DictConfig) -> None:
    """Draw those of ``n`` pictures that are not there yet, save each as it comes, and a grid of the first."""
    check_numbers(
        config,
        {"n": int, "seed": int, "steps": int, "scale": float, "batch_size": int, "grid": int, "columns": int},
        {"n": 1, "seed": 0, "steps": 1, "batch_size": 1, "grid": 1, "columns": 1},
    )
    check(config)
    trained = load_latent_diffusion(config.run, config.get("guidance"), config.scale)
    asked = encode_conditions(trained.config, config.classes, config.captions)
    own = instantiate(config.sampler) if config.get("sampler") else None
    sampler = choose_sampler(trained.module, own, config.steps)
    protocol = _protocol(config, trained, sampler, asked)
    folder = find_folder(config, protocol)
    drawing = Drawing(folder, protocol)  # refused before the folder is touched, be it by a lock
    if not (folder / RECORD).exists():
        drawing.missing(config.n, config.batch_size)
    folder.mkdir(parents=True, exist_ok=True)
    with lock(folder):
        drawing = Drawing(folder, protocol)  # as the command before us has left it
        there, missing = drawing.missing(config.n, config.batch_size)
        drawn = draw(trained.module, missing, partial(conditions_in_turn, asked), seed=config.seed, sampler=sampler)
        for numbers, (_, pictures) in zip(missing, drawn, strict=True):
            drawing.save(numbers, to_uint8(pictures))
        shown = drawing.save_grid(config.grid, config.columns)
    before = f", {there} of them drawn before" if there else ""
    more = f"; it keeps all {drawing.count}" if drawing.count > config.n else ""
    print(f"{config.n} pictures{before}: {folder}{more}\ngrid of the first {shown}: {folder / GRID}")


def _protocol(config: DictConfig, trained: TrainedLatentDiffusion, sampler: Sampler, asked: Asked) -> dict[str, Any]:
    """What decides a picture of a given number, beside the run's name."""
    node = OmegaConf.to_container(config.get("sampler") or trained.config.sampler, resolve=True)
    assert isinstance(node, dict)
    protocol = {
        "run": str(Path(config.run).absolute()),
        "weights": trained.artifact.manifest["sha256"][:12],
        "step": trained.artifact.manifest["step"],
        "first_stage": str(trained.config.derived.get("first_stage"))[:12],
        **{key: asked[name][0] if name in asked else [] for key, name in CONDITIONS.items()},
        "seed": config.seed,
        "sampler": describe(sampler),
        "settings": node if config.steps is None else {**node, "steps": config.steps},
        "guidance": str(trained.module.guidance),
    }
    return dict(json.loads(json.dumps(protocol)))  # as the record will say it
