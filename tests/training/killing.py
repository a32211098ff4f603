"""A program that starts ``ldm train`` over and over, each time in a process of its own that is killed at some moment.

Called with a JSON file, a list of starts ``{"args": [...], "moment": ..., "step": ..., "signal": ...}``, all but the
first optional; writes the list of ``[exit code, what it said]`` beside it. The processes are forks of this one,
which has imported everything and run nothing, so that a start costs no more than what it computes. The kills are real;
a moment is found by a wrapper around a function that is called then.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ldm_lightning.callbacks import checkpoint_files, export
from ldm_lightning.callbacks.checkpoints import Checkpoints
from ldm_lightning.callbacks.reseed import Reseed
from ldm_lightning.cli import main
from ldm_lightning.experiment import train
from ldm_lightning.training.first_stage import FirstStage, LatentStatistics
from ldm_lightning.training.latent_diffusion import LatentDiffusion

IO = checkpoint_files.AtomicCheckpointIO


def saves(name: str) -> Callable[..., bool]:
    return lambda io, checkpoint, path, *more: path.name == name


def always(*args: Any) -> bool:
    return True


# (owner, function, whether the signal comes after it, which of its calls)
MOMENTS: dict[str, list[tuple[Any, str, bool, Callable[..., bool]]]] = {
    "start": [(train, "claim", True, always)],
    "batch": [(Reseed, "on_train_batch_start", False, always)],
    "half a checkpoint": [(checkpoint_files.torch, "save", True, always)],
    "no last.ckpt": [(IO, "_make_way", True, always)],
    "saved, not logged": [(IO, "save_checkpoint", True, saves("last.ckpt"))],
    "amid validation": [(stage, "validation_step", True, always) for stage in (FirstStage, LatentDiffusion)],
    "validated, not saved": [(Checkpoints, "on_validation_end", False, always)],
    "validated": [(Checkpoints, "on_validation_end", True, always)],
    "best saved, not last": [(IO, "save_checkpoint", True, saves("best.ckpt"))],
    "measuring": [(LatentStatistics, "update", True, always)],
    "half an export": [(export, "write_artifact", False, always)],
    "exported": [(export, "write_artifact", True, always)],
}


def arm(moment: str, step: int, number: int) -> None:
    """Send the signal to this process the first time that the moment comes within a step or later."""
    trainers: list[Any] = []
    make = train._trainer
    train._trainer = lambda *args: trainers.append(make(*args)) or trainers[-1]  # type: ignore[func-returns-value]

    def wrapped(function: Callable[..., Any], after: bool, which: Callable[..., bool]) -> Callable[..., Any]:
        def call(*args: Any, **more: Any) -> Any:
            due = which(*args) and (trainers[-1].global_step if trainers else 0) >= step
            result = function(*args, **more) if after or not due else None
            if due:
                os.kill(os.getpid(), number)
            return result if after or not due else function(*args, **more)

        return call

    for owner, name, after, which in MOMENTS[moment]:
        setattr(owner, name, wrapped(getattr(owner, name), after, which))


def start(said: Path, order: dict[str, Any]) -> list[Any]:
    """One process; its exit code, negative for a signal, and what it said."""
    child = os.fork()
    if child == 0:
        with said.open("wb") as file:
            os.dup2(file.fileno(), 1)
            os.dup2(file.fileno(), 2)
        if "moment" in order:
            arm(order["moment"], order.get("step", 0), order.get("signal", signal.SIGKILL))
        sys.argv = ["ldm", "train", *order["args"]]
        main()
        sys.exit(0)
    return [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), said.read_text()]


if __name__ == "__main__":
    orders = Path(sys.argv[1])
    results = [start(orders.with_name("said.txt"), order) for order in json.loads(orders.read_text())]
    orders.with_name("results.json").write_text(json.dumps(results))
