"""``ldm sample``: pictures from a trained model."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from hydra.utils import instantiate
from omegaconf import DictConfig, ListConfig, OmegaConf
from torch import Tensor
from tqdm import tqdm

from ldm_lightning.callbacks.picture_grid import to_uint8
from ldm_lightning.cli.condition import class_number
from ldm_lightning.cli.drawing import GRID, Drawing, find_folder
from ldm_lightning.cli.fit import check_sampler
from ldm_lightning.cli.run_folder import lock
from ldm_lightning.cli.schema import check, check_numbers
from ldm_lightning.cli.trained import Trained, load_latent_diffusion
from ldm_lightning.data.dataset import encode_caption
from ldm_lightning.diffusion.sampler import Sampler
from ldm_lightning.diffusion.self_conditioning import check_evaluated_once
from ldm_lightning.errors import UserError
from ldm_lightning.output import RECORD
from ldm_lightning.training.latent_diffusion import LatentDiffusion

__all__ = ["choose", "draw", "main"]

_KEYS = {"classes": "class", "captions": "caption"}  # of the command line, and what a model calls them
_Asked = dict[str, tuple[list[str], Tensor]]


def main(config: DictConfig) -> None:
    """Draw those of ``n`` pictures that are not there yet, save each as it comes, and a grid of the first."""
    check_numbers(
        config,
        {"n": int, "seed": int, "steps": int, "scale": float, "batch_size": int, "grid": int, "columns": int},
        {"n": 1, "seed": 0, "steps": 1, "batch_size": 1, "grid": 1, "columns": 1},
    )
    check(config)
    trained = load_latent_diffusion(config.run, config.get("guidance"), config.scale)
    asked = _asked(config, trained)
    sampler = choose(config, trained.module)
    protocol = _protocol(config, trained, sampler, asked)
    folder = find_folder(config, protocol)
    drawing = Drawing(folder, protocol)  # refused before the folder is touched, be it by a lock
    if not (folder / RECORD).exists():
        drawing.missing(config.n, config.batch_size)
    folder.mkdir(parents=True, exist_ok=True)
    with lock(folder):
        drawing = Drawing(folder, protocol)  # as the command before us has left it
        there, missing = drawing.missing(config.n, config.batch_size)
        encoded = {name: condition for name, (_, condition) in asked.items()}
        pictures = draw(trained.module, missing, partial(_in_turn, encoded), seed=config.seed, sampler=sampler)
        for numbers, batch in zip(missing, pictures, strict=True):
            drawing.save(numbers, to_uint8(batch))
        shown = drawing.save_grid(config.grid, config.columns)
    before = f", {there} of them drawn before" if there else ""
    more = f"; it keeps all {drawing.count}" if drawing.count > config.n else ""
    print(f"{config.n} pictures{before}: {folder}{more}\ngrid of the first {shown}: {folder / GRID}")


def _protocol(config: DictConfig, trained: Trained[LatentDiffusion], sampler: Sampler, asked: _Asked) -> dict[str, Any]:
    """What decides a picture of a given number, beside the run's name."""
    node = OmegaConf.to_container(config.get("sampler") or trained.config.sampler, resolve=True)
    assert isinstance(node, dict)
    protocol = {
        "run": str(Path(config.run).absolute()),
        "weights": trained.artifact.manifest["sha256"][:12],
        "step": trained.artifact.manifest["step"],
        "first_stage": str(trained.config.derived.get("first_stage"))[:12],
        **{key: asked[name][0] if name in asked else [] for key, name in _KEYS.items()},
        "seed": config.seed,
        "sampler": f"{type(sampler).__name__}, {sampler.evaluations} evaluations",
        "settings": node if config.steps is None else {**node, "steps": config.steps},
        "guidance": str(trained.module.guidance),
    }
    return dict(json.loads(json.dumps(protocol)))  # as the record will say it


def choose(config: DictConfig, module: LatentDiffusion) -> Sampler:
    """The run's sampler, changed where the command line says so."""
    sampler: Sampler = instantiate(config.sampler) if config.get("sampler") else module.sampler
    check_sampler(sampler, module.denoiser)
    if module.objective.self_conditioning:
        check_evaluated_once(sampler)
    if config.steps is not None:
        sampler = replace(sampler, steps=config.steps)  # type: ignore[type-var]
    return sampler


def draw(
    module: LatentDiffusion,
    batches: Sequence[Tensor],
    conditions: Callable[[Tensor], Mapping[str, Tensor]],
    *,
    seed: int,
    sampler: Sampler,
) -> Iterator[Tensor]:
    """Pictures (B, C, H, W) in [-1, 1] on the CPU, a batch at a time; the split into batches changes nothing.

    Args:
        module: the trained second stage.
        batches: the samples' numbers, each (B,) int64.
        conditions: gives the conditions of such numbers, by name, first dimension B.
        seed: of the samples.
        sampler: how they are drawn.
    """
    with tqdm(total=sum(map(len, batches)), desc="sampling", unit="picture") as bar:
        for numbers in batches:
            own = {name: value.to(module.device) for name, value in conditions(numbers).items()}
            yield module.sample(numbers.to(module.device), own, seed, sampler).cpu()
            bar.update(len(numbers))


def _asked(config: DictConfig, trained: Trained[LatentDiffusion]) -> _Asked:
    """What the samples are of, in turn: for each condition its values in words, and encoded."""
    names = list(trained.config.derived.class_names)
    asked: _Asked = {}
    if numbers := [class_number(name, names) for name in _list(config.classes)] or list(range(len(names))):
        asked["class"] = [names[number] for number in numbers], torch.tensor(numbers)
    if captions := [str(caption) for caption in _list(config.captions)]:
        length = trained.config.data.caption_length
        asked["caption"] = captions, torch.stack([encode_caption(caption, length) for caption in captions])
    reads = instantiate(trained.config.condition).reads
    for key, name in _KEYS.items():
        if config[key] is not None and name not in reads:
            read = " and ".join(reads) or "no condition"
            raise UserError(f"{key}={config[key]} changes nothing, since this model reads {read}: leave it out")
    if missing := [name for name in reads if name not in asked]:
        mend = "captions='a text', or captions=['one','two']" if missing == ["caption"] else "another run"
        raise UserError(f"this model draws by {' and '.join(missing)}, which is not given: add {mend}")
    return {name: asked[name] for name in reads}


def _in_turn(encoded: Mapping[str, Tensor], numbers: Tensor) -> dict[str, Tensor]:
    return {name: values[numbers % len(values)] for name, values in encoded.items()}


def _list(value: Any) -> list[Any]:
    if value is None:
        return []
    return list(value) if isinstance(value, ListConfig) else [value]
