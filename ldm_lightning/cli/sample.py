"""``ldm sample``: pictures from a trained model."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from hydra.utils import instantiate
from omegaconf import DictConfig, ListConfig
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from ldm_lightning.artifact import replace_file
from ldm_lightning.callbacks.picture_grid import save_grid, to_uint8
from ldm_lightning.cli.condition import class_number
from ldm_lightning.cli.fit import check_sampler
from ldm_lightning.cli.run_folder import check_writable
from ldm_lightning.cli.schema import check, check_numbers
from ldm_lightning.cli.trained import Trained, load_latent_diffusion
from ldm_lightning.data.dataset import encode_caption
from ldm_lightning.diffusion.sampler import Sampler
from ldm_lightning.diffusion.self_conditioning import check_evaluated_once
from ldm_lightning.errors import UserError
from ldm_lightning.training.latent_diffusion import LatentDiffusion

__all__ = ["choose", "draw", "main"]


def main(config: DictConfig) -> None:
    """Draw ``n`` pictures, save each and a grid of all."""
    check_numbers(
        config,
        {"n": int, "seed": int, "steps": int, "scale": float, "batch_size": int, "grid": int, "columns": int},
        {"n": 1, "seed": 0, "steps": 1, "batch_size": 1, "grid": 1, "columns": 1},
    )
    check(config)
    trained = load_latent_diffusion(config.run, config.get("guidance"), config.scale)
    condition = _conditions(config, trained)
    sampler = choose(config, trained.module)
    folder = Path(config.output or Path(config.run) / "samples" / f"seed{config.seed}").absolute()
    check_writable(folder, "choose another output=...")
    pictures = draw(
        trained.module,
        torch.arange(config.n),
        condition,
        seed=config.seed,
        batch_size=config.batch_size,
        sampler=sampler,
    )
    folder.mkdir(parents=True, exist_ok=True)
    for stale in folder.glob("[0-9]*.png"):
        stale.unlink()
    protocol = {
        "run": str(Path(config.run).absolute()),
        "weights": trained.artifact.manifest["sha256"][:12],
        "step": trained.artifact.manifest["step"],
        **{key: _list(config[key]) for key in ("classes", "captions")},
        "n": config.n,
        "seed": config.seed,
        "sampler": f"{type(sampler).__name__}, {sampler.evaluations} evaluations",
        "guidance": str(trained.module.guidance),
    }
    replace_file(folder / "protocol.json", json.dumps(protocol, indent=2).encode())
    for number, picture in enumerate(to_uint8(pictures)):
        Image.fromarray(picture).save(folder / f"{number:06d}.png")
    sheet = folder.with_name(f"{folder.name}.png")
    save_grid(sheet, pictures[: config.grid], config.columns)
    print(f"{config.n} pictures: {folder}\ngrid of the first {min(config.n, config.grid)}: {sheet}")


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
    index: Tensor,
    condition: Mapping[str, Tensor],
    *,
    seed: int,
    batch_size: int,
    sampler: Sampler,
) -> Tensor:
    """Pictures (N, C, H, W) in [-1, 1] on the CPU, drawn in batches; the split into batches changes nothing."""
    pictures = []
    with tqdm(total=len(index), desc="sampling", unit="picture") as bar:
        for part in torch.arange(len(index)).split(batch_size):
            own = {name: value[part].to(module.device) for name, value in condition.items()}
            pictures.append(module.sample(index[part].to(module.device), own, seed, sampler).cpu())
            bar.update(len(part))
    return torch.cat(pictures)


def _conditions(config: DictConfig, trained: Trained[LatentDiffusion]) -> dict[str, Tensor]:
    """Conditions of n samples: the classes and captions asked for, in turn."""
    names = list(trained.config.derived.class_names)
    turn = torch.arange(config.n)
    condition = {}
    if numbers := [class_number(name, names) for name in _list(config.classes)] or list(range(len(names))):
        condition["class"] = torch.tensor(numbers)[turn % len(numbers)]
    if captions := [str(caption) for caption in _list(config.captions)]:
        length = trained.config.data.caption_length
        encoded = torch.stack([encode_caption(caption, length) for caption in captions])
        condition["caption"] = encoded[turn % len(captions)]
    reads = instantiate(trained.config.condition).reads
    for key, name in (("classes", "class"), ("captions", "caption")):
        if config[key] is not None and name not in reads:
            read = " and ".join(reads) or "no condition"
            raise UserError(f"{key}={config[key]} changes nothing, since this model reads {read}: leave it out")
    if missing := [name for name in reads if name not in condition]:
        mend = "captions='a text', or captions=['one','two']" if missing == ["caption"] else "another run"
        raise UserError(f"this model draws by {' and '.join(missing)}, which is not given: add {mend}")
    return condition


def _list(value: Any) -> list[Any]:
    if value is None:
        return []
    return list(value) if isinstance(value, ListConfig) else [value]
