"""``ldm doctor``: what looks wrong in a run, in words, and what to change.

It goes by what the run's folder holds and by what its exported model does (:mod:`ldm_lightning.experiment.trial`).
"""

from __future__ import annotations

import fcntl
import textwrap
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path

from omegaconf import DictConfig

from ldm_lightning import __version__
from ldm_lightning.diagnosis import Run, Verdict, diagnose
from ldm_lightning.experiment.best import FOLDER, announce_stale
from ldm_lightning.experiment.result import check_result, publish
from ldm_lightning.experiment.run_folder import output_folder
from ldm_lightning.experiment.saved import read_config, read_manifest
from ldm_lightning.experiment.trial import try_model
from ldm_lightning.loggers.csv_log import read_metrics

__all__ = ["main", "read_run"]

_WIDTH = 98


def main(config: DictConfig) -> None:
    """Print the findings of a run, what was fine and what could not be judged, and write them to a json file."""
    folder = Path(config.run)
    run = read_run(folder)
    output = output_folder(config.output, folder / "evaluation")
    check_result(output, "doctor")
    verdicts = diagnose(replace(run, trial=try_model(folder)))
    facts = {"run": str(folder), "stage": run.stage, "step": run.steps, "version": __version__}
    page = publish(output, "doctor", {**facts, "verdicts": [asdict(verdict) for verdict in verdicts]})
    announce_stale(folder / FOLDER)
    print("\n".join([*_report(folder, run, verdicts), f"\nwritten to {page}"]))


def read_run(folder: Path) -> Run:
    """What the run ``folder`` holds, however far it has come.

    Raises:
        UserError: it holds no run, or a damaged one.
    """
    config = read_config(folder)
    metrics = folder / "metrics.csv"
    manifest = read_manifest(folder) if (folder / "export" / "manifest.json").is_file() else {}
    run = Run(
        config=config,
        curves=read_metrics(metrics) if metrics.is_file() else {},
        statistics=manifest.get("statistics"),
        running=_is_running(folder),
        resumable=any((folder / "checkpoints").glob("*.ckpt")),
    )
    return replace(run, finished=0 < run.setting("trainer.max_steps", -1) <= manifest.get("step", 0))


def _is_running(folder: Path) -> bool:
    """Whether a command holds the folder's lock."""
    try:
        with (folder / ".lock").open() as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    return False


def _report(folder: Path, run: Run, verdicts: list[Verdict]) -> Iterator[str]:
    by_state = {state: [v for v in verdicts if v.state == state] for state in ("wrong", "fine", "unknown")}
    found = by_state["wrong"]
    count = {0: "nothing looks wrong", 1: "1 finding"}.get(len(found), f"{len(found)} findings")
    yield f"{folder}: {run.stage}, step {run.steps}: {count}"
    for number, verdict in enumerate(found, start=1):
        yield f"\n{number}. {verdict.subject.upper()}"
        yield _paragraph("seen", verdict.seen)
        yield _paragraph("why", verdict.why)
        for index, change in enumerate(verdict.change):
            yield _paragraph("" if index else "change", f"- {change}")
    if by_state["fine"]:
        yield "\nLooked at, and fine:"
        yield from (_item(verdict) for verdict in by_state["fine"])
    if by_state["unknown"]:
        yield "\nNot to be judged:"
        yield from (_item(verdict) for verdict in by_state["unknown"])
    if any("=" in change for verdict in found for change in verdict.change):
        yield "\nWhat decides the numbers cannot change within a run: add name=... when you repeat its command."


def _paragraph(label: str, text: str) -> str:
    return textwrap.fill(
        text,
        _WIDTH,
        initial_indent=f"   {label:8}",
        subsequent_indent=" " * (13 if text.startswith("- ") else 11),
        break_long_words=False,
        break_on_hyphens=False,
    )


def _item(verdict: Verdict) -> str:
    return textwrap.fill(
        f"{verdict.subject}: {verdict.seen}",
        _WIDTH,
        initial_indent="   ",
        subsequent_indent="     ",
        break_long_words=False,
        break_on_hyphens=False,
    )
