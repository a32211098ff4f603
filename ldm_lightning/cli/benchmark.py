"""``ldm benchmark``: what a part of the library costs on this machine, with the protocol beside the figures.

Every subject is a file of `ldm_lightning.benchmark`; here stands how each is read from the configuration.
"""

from __future__ import annotations

import platform
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from rich.console import Console
from rich.table import Table

from ldm_lightning import __version__
from ldm_lightning.benchmark.data import SHARDS, measure_data
from ldm_lightning.benchmark.sampler import measure_samplers
from ldm_lightning.diffusion.denoiser import Denoiser
from ldm_lightning.errors import UserError, nearest
from ldm_lightning.experiment.compose import conf_dir
from ldm_lightning.experiment.fit import check_sampler
from ldm_lightning.experiment.load import default_device
from ldm_lightning.experiment.result import check_result, publish
from ldm_lightning.experiment.run_folder import output_folder
from ldm_lightning.experiment.schema import check_numbers

__all__ = ["main"]

Rows = dict[str, dict[str, Any]]


def main(config: DictConfig) -> None:
    """Measure, print a table, and write it as JSON."""
    if config.what not in SUBJECTS:
        raise UserError(f"what={config.what} is none of {', '.join(SUBJECTS)}{nearest(str(config.what), SUBJECTS)}")
    folder = output_folder(config.output, Path(config.runs) / "benchmark")
    check_result(folder, config.what)
    rows, protocol = SUBJECTS[config.what](config)
    protocol |= {
        "machine": torch.cuda.get_device_name() if default_device().type == "cuda" else platform.machine(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "version": __version__,
    }
    _print(rows, protocol, config.what)
    print(f"figures: {publish(folder, config.what, {'figures': rows, 'protocol': protocol})}")


def _data(config: DictConfig) -> tuple[Rows, dict[str, Any]]:
    check_numbers(
        config,
        {"samples": int, "batch_size": int, "latent_size": int, "rounds": int},
        {"samples": SHARDS, "batch_size": 1, "latent_size": 1, "rounds": 1},
    )
    return measure_data(
        samples=config.samples,
        latent_channels=config.derived.latent_channels,
        latent_size=config.latent_size,
        batch_size=config.batch_size or 256,
        rounds=config.rounds,
    )


def _samplers(config: DictConfig) -> tuple[Rows, dict[str, Any]]:
    check_numbers(
        config,
        {"steps": int, "batch_size": int, "latent_size": int, "rounds": int},
        {"steps": 1, "batch_size": 1, "latent_size": 1, "rounds": 1},
    )
    files = {file.stem: file for file in sorted((conf_dir() / "sampler").glob("*.yaml"))}
    for name in config.only or ():
        if name not in files:
            raise UserError(f"only={name} is no sampler{nearest(name, files)} (samplers: {', '.join(files)})")
    path, prediction = instantiate(config.path), instantiate(config.prediction)
    if prediction.outputs_per_channel != 1:
        raise UserError("a network of one output a latent is measured: choose another prediction, such as epsilon")
    backbone = instantiate(config.denoiser, vector_width=None, token_width=None)
    samplers = {name: instantiate(OmegaConf.load(files[name])) for name in config.only or files}
    for name, sampler in list(samplers.items()):
        try:
            check_sampler(sampler, Denoiser(backbone, path, prediction))
        except UserError:
            if config.only:
                raise
            del samplers[name]
    return measure_samplers(
        samplers,
        backbone,
        path,
        prediction,
        shape=(config.derived.latent_channels, config.latent_size, config.latent_size),
        batch_size=config.batch_size or 16,
        steps=config.steps,
        rounds=config.rounds,
        device=default_device(),
    )


def _print(rows: Rows, protocol: dict[str, Any], what: str) -> None:
    table = Table(caption="\n".join(f"{name}: {value}" for name, value in protocol.items()), caption_justify="left")
    table.add_column(what)
    for name in next(iter(rows.values())):
        table.add_column(name, justify="right")
    for name, row in rows.items():
        table.add_row(name, *(f"{value:.4g}" if isinstance(value, float) else str(value) for value in row.values()))
    Console().print(table)


SUBJECTS: dict[str, Callable[[DictConfig], tuple[Rows, dict[str, Any]]]] = {"sampler": _samplers, "data": _data}
