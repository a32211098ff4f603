"""``ldm evaluate``: figures of a trained model, each with its protocol."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from omegaconf import DictConfig
from rich.console import Console
from rich.table import Table

from ldm_lightning.experiment.evaluate import evaluate

__all__ = ["main"]


def main(config: DictConfig) -> None:
    """Measure, print a table, and say where it is kept."""
    measured = evaluate(config)
    if measured.fewer:
        print(f"ldm evaluate: {measured.fewer}", file=sys.stderr)
    _print(measured.figures, measured.protocol, Path(config.run).name)
    print(f"metrics: {measured.page}")


def _print(figures: dict[str, Any], protocol: dict[str, Any], title: str) -> None:
    table = Table(title=title, caption="\n".join(f"{name}: {value}" for name, value in protocol.items()))
    table.caption_justify = "left"
    table.add_column("figure")
    table.add_column("model", justify="right")
    table.add_column("real pictures", justify="right")
    show: Callable[[Any], str] = lambda value: "" if value is None else f"{value:.4g}"  # noqa: E731
    for name, row in figures.items():
        table.add_row(name, show(row["value"]), show(row.get("real")))
    Console().print(table)
