"""The metrics file of a run: ``metrics.csv`` in long format, the record that needs no service.

One row a value, ``step,epoch,metric,value``, appended and handed to the operating system with every call: a killed
run loses nothing, new metrics need no new column, and memory stays constant however long the run.

A run that died after its last checkpoint has logged steps which its successor will train again. The successor calls
``rewind(step)`` first, so that the file of an interrupted and resumed run equals the file of one that never stopped.

Steps are Lightning's: the optimizer steps completed *before* the batch that is logged. The first batch is step 0, and
after ``n`` steps the next one is ``n``.
"""

from __future__ import annotations

import csv
import io
import os
from argparse import Namespace
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

from pytorch_lightning.loggers import Logger
from pytorch_lightning.utilities import rank_zero_only

from ldm_lightning.artifact import replacing
from ldm_lightning.errors import UserError, room_for

__all__ = ["CsvLogger", "read_metrics"]

HEADER = ["step", "epoch", "metric", "value"]


class CsvLogger(Logger):
    """Append every metric to ``<folder>/metrics.csv``; only rank zero writes.

    Args:
        folder: the run folder, created when the first row is written.
    """

    def __init__(self, folder: str | Path) -> None:
        super().__init__()
        self.path = Path(folder) / "metrics.csv"

    @property
    def name(self) -> str:
        """Empty: Lightning appends the name to ``save_dir``, which already is the run's own folder."""
        return ""

    @property
    def version(self) -> str:
        """Empty, for the same reason as ``name``."""
        return ""

    @property
    def save_dir(self) -> str:
        """The run folder."""
        return str(self.path.parent)

    def log_hyperparams(self, params: dict[str, Any] | Namespace, *args: Any, **kwargs: Any) -> None:
        """Do nothing: the run folder holds the whole configuration in ``config.yaml``."""

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Append one row for each metric.

        Args:
            metrics: values by name. Lightning's ``epoch`` fills the column of that name instead of a row.
            step: optimizer steps completed before the logged batch; none counts as 0.

        Raises:
            DiskFull: half a row may stand at the end, which the next call cuts off.
        """
        epoch = int(metrics["epoch"]) if "epoch" in metrics else ""
        # Sorted: Lightning hands values over in the order of their first appearance, which a resumed run has not seen.
        named = sorted((name, value) for name, value in metrics.items() if name != "epoch")
        rows = [[step or 0, epoch, name, repr(float(value))] for name, value in named]
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with room_for(self.path), self.path.open("a+b") as file:
            _repair(file)
            file.write(_encode(rows if file.tell() else [HEADER, *rows]))

    @rank_zero_only
    def rewind(self, step: int, again: Collection[str] = ()) -> None:
        """Drop the rows of ``step`` and later: what training from a state with ``step`` completed steps logs anew.

        The file is replaced in one atomic operation, so a kill leaves either the old or the new one. To be called when
        Lightning has restored ``global_step``: at ``on_fit_start`` it is still 0.

        Args:
            step: completed optimizer steps, ``trainer.global_step`` with one optimizer; 0 starts afresh.
            again: metrics that the batch which completed the last step logs anew as well.

        Raises:
            UserError: if the existing file is not a metrics file.
        """
        if not self.path.exists():
            return
        with replacing(self.path) as file:
            file.write(_encode([HEADER]))
            for row in _rows(self.path):
                at, name = int(row[0]), row[2]
                if at < step and not (at == step - 1 and name in again):
                    file.write(_encode([row]))


def read_metrics(path: str | Path) -> dict[str, list[tuple[int, float]]]:
    """Read a metrics file, also while its run goes on: a last line without its end is left out.

    Args:
        path: the ``metrics.csv`` of a run.

    Returns:
        For each metric its ``(step, value)`` pairs in the order of logging.

    Raises:
        UserError: if the file is missing or is not a metrics file.
    """
    curves: dict[str, list[tuple[int, float]]] = {}
    for row in _rows(Path(path)):
        try:
            step, _, name, value = row
            curves.setdefault(name, []).append((int(step), float(value)))
        except ValueError:
            raise UserError(f"{path} is damaged: {','.join(row)!r} is no row of it; take that line out") from None
    return curves


def _rows(path: Path) -> Iterator[list[str]]:
    """Yield the complete rows below the header."""
    if not path.is_file():
        raise UserError(f"there is no metrics file {path}; give the metrics.csv of a run folder")
    with path.open(newline="", encoding="utf-8") as file:
        rows = csv.reader(line for line in file if line.endswith("\n"))
        header = next(rows, HEADER)
        if header != HEADER:
            raise UserError(
                f"{path} is not a metrics file: it starts with {','.join(header)!r}, not {','.join(HEADER)!r}"
            )
        yield from rows


def _encode(rows: list[list[Any]]) -> bytes:
    text = io.StringIO(newline="")
    csv.writer(text, lineterminator="\n").writerows(rows)
    return text.getvalue().encode()


def _repair(file: io.BufferedRandom) -> None:
    """Cut off a last line that a crash left without its end, and stand at the end of the file."""
    end = file.seek(0, os.SEEK_END)
    while end and _byte(file, end - 1) != b"\n":
        end -= 1
    file.truncate(end)
    file.seek(end)


def _byte(file: io.BufferedRandom, position: int) -> bytes:
    file.seek(position)
    return file.read(1)
