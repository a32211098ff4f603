"""A run's curves as one picture."""

from __future__ import annotations

import importlib.util
import io
import re
from pathlib import Path

from ldm_lightning.loggers.csv_log import read_metrics
from ldm_lightning.output import Output

__all__ = ["draw_curves"]

_NUMBER = re.compile(r"/(\d+)(?=@|$)")


def draw_curves(folder: Path) -> Path | None:
    """Draw ``metrics.csv`` of a run as ``curves.png``, training and validation of one quantity in one panel.

    So are quantities that differ by a number only, such as one for each latent channel.

    Returns:
        The picture's path, or None without matplotlib (extra ``demo``) or without anything to draw.
    """
    if importlib.util.find_spec("matplotlib") is None or not (folder / "metrics.csv").is_file():
        return None
    from matplotlib.figure import Figure

    metrics = read_metrics(folder / "metrics.csv")
    # A weight that never changes is no curve.
    moving = [name for name, points in metrics.items() if "/weight/" not in name or len({v for _, v in points}) > 1]
    quantities = list(dict.fromkeys(_NUMBER.sub("/*", name.partition("/")[2]) for name in moving))
    if not quantities:
        return None
    columns = min(3, len(quantities))
    rows = -(-len(quantities) // columns)
    figure = Figure(figsize=(4.2 * columns, 3.2 * rows), layout="constrained")
    for panel, quantity in enumerate(quantities, start=1):
        axes = figure.add_subplot(rows, columns, panel)
        for name, points in metrics.items():
            part, _, own = name.partition("/")
            if _NUMBER.sub("/*", own) == quantity:
                number = _NUMBER.search(own)
                label = part if number is None else number[1]
                axes.plot(
                    *zip(*points, strict=True), label=label, marker="o" if len(points) < 20 else None, markersize=3
                )
        if "loss" in quantity:
            axes.set_yscale("log")
        axes.set(title=quantity, xlabel="step")
        if len(axes.lines) <= 8:
            axes.legend()
    buffer, output = io.BytesIO(), Output(folder)
    figure.savefig(buffer, dpi=110, format="png")
    name = output.place("curves.png")
    output.add({name: buffer.getvalue()})
    return folder / name
