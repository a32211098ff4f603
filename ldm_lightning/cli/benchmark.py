"""``ldm benchmark``: what a part of the library costs on this machine, with the protocol beside the figures.

Every subject is a file of its own, a function from the configuration to rows (by name) and what its protocol adds.
"""

from __future__ import annotations

import platform
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig
from rich.console import Console
from rich.table import Table

from ldm_lightning import __version__
from ldm_lightning.cli.benchmark_data import measure_data
from ldm_lightning.cli.benchmark_sampler import measure_samplers
from ldm_lightning.cli.result import check_result, publish
from ldm_lightning.cli.run_folder import output_folder
from ldm_lightning.cli.trained import device
from ldm_lightning.errors import UserError, nearest

__all__ = ["main"]

Rows = dict[str, dict[str, Any]]
SUBJECTS: dict[str, Callable[[DictConfig], tuple[Rows, dict[str, Any]]]] = {
    "sampler": measure_samplers,
    "data": measure_data,
}


def main(config: DictConfig) -> None:
    """Measure, print a table, and write it as JSON."""
    if config.what not in SUBJECTS:
        raise UserError(f"what={config.what} is none of {', '.join(SUBJECTS)}{nearest(str(config.what), SUBJECTS)}")
    folder = output_folder(config.output, Path(config.runs) / "benchmark")
    check_result(folder, config.what)
    rows, protocol = SUBJECTS[config.what](config)
    protocol |= {
        "machine": torch.cuda.get_device_name() if device().type == "cuda" else platform.machine(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "version": __version__,
    }
    _print(rows, protocol, config.what)
    print(f"figures: {publish(folder, config.what, {'figures': rows, 'protocol': protocol})}")


def _print(rows: Rows, protocol: dict[str, Any], what: str) -> None:
    table = Table(caption="\n".join(f"{name}: {value}" for name, value in protocol.items()), caption_justify="left")
    table.add_column(what)
    for name in next(iter(rows.values())):
        table.add_column(name, justify="right")
    for name, row in rows.items():
        table.add_row(name, *(f"{value:.4g}" if isinstance(value, float) else str(value) for value in row.values()))
    Console().print(table)
