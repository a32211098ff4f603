"""The model of a run from one of its checkpoints, without training on.

For a run whose best validation lies before its end, and for one that was stopped and will not go on. What it writes is
what the end of training writes: averaged weights and, for a first stage, the statistics of its latents.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from torch import Tensor

from ldm_lightning.callbacks.checkpoint_files import BEST, damage, newest, read_state
from ldm_lightning.callbacks.ema import Ema
from ldm_lightning.callbacks.export import write_model
from ldm_lightning.errors import UserError, nearest
from ldm_lightning.experiment.best import FOLDER, identity
from ldm_lightning.experiment.run_folder import check_writable, lock
from ldm_lightning.experiment.saved import read_config, read_manifest
from ldm_lightning.experiment.stages import stage_of
from ldm_lightning.loggers.csv_log import read_metrics

__all__ = ["Finished", "finish"]

_PLACES = {"best": f"{FOLDER}/export", "last": "export"}


@dataclass(frozen=True)
class Finished:
    """What became of a checkpoint.

    Attributes:
        folder: where the model lies.
        checkpoint: the file it is of.
        step: optimizer steps that it was trained for.
        metrics: the last value of every metric by then.
    """

    folder: Path
    checkpoint: Path
    step: int
    metrics: dict[str, float]


def finish(run: str | Path, checkpoint: str = "best", root: str | None = None) -> Finished:
    """Write the model of a checkpoint.

    Args:
        run: the run folder.
        checkpoint: "best" or "last".
        root: where the pictures of a first stage lie now, if not where they did; its latents are measured on them.

    Raises:
        UserError: there is no such checkpoint, or no whole one, or the pictures are others.
    """
    if checkpoint not in _PLACES:
        mend = nearest(str(checkpoint), _PLACES)
        raise UserError(f"checkpoint={checkpoint} is none of {', '.join(_PLACES)}{mend}")
    run = Path(run).absolute()
    plain = read_config(run)
    folder = run / _PLACES[checkpoint]
    check_writable(folder, "make it writable")
    path = _checkpoint(run, checkpoint)
    state = read_state(path)
    step: int = state["global_step"]
    exported = checkpoint == "last" and (folder / "manifest.json").exists()
    if exported and (there := read_manifest(folder)["step"]) > step:
        raise UserError(f"{folder} holds the model of step {there}, which is later than step {step} of {path.name}")
    trained, stage = OmegaConf.create(plain), stage_of(plain["stage"])
    if "run" in trained.first_stage and not (run / "first_stage").is_dir():
        raise UserError(f"{run / 'first_stage'} is lost: copy the first stage's export folder there")
    folder.parent.mkdir(exist_ok=True)
    with lock(folder.parent):  # the run's own only where it writes as well
        weights = _weights(state, trained, path)
        details = stage.details(trained, weights, root, str(path))
        metrics = _metrics(run, step)
        facts = {"config": plain, "step": step, "metrics": metrics, "checkpoint": identity(path)}
        below = run / "first_stage" if stage.stands_on_first_stage else None
        write_model(folder, stage.name, weights, {**facts, **details}, below)
    return Finished(folder, path, step, metrics)


def _checkpoint(run: Path, which: str) -> Path:
    """The file to read."""
    folder = run / "checkpoints"
    if not any(folder.glob("*.ckpt")):
        begun = (
            "an imported first stage, whose model is in export" if (run / "export").is_dir() else "no step was saved"
        )
        raise UserError(f"{run} holds no checkpoints ({begun}): there is nothing to finish")
    best = folder / BEST
    if which == "best" and not best.exists():
        raise UserError(f"{run} holds no best checkpoint, which is saved after a validation: take checkpoint=last")
    if which == "last":
        path, wrong = newest(folder)
    else:
        reason = damage(best)
        path, wrong = (best, {}) if reason is None else (None, {best: reason})
    if path is None:
        why = "; ".join(f"{file} {reason}" for file, reason in wrong.items()) or f"{folder} holds none"
        other = "best" if which == "last" else "last"
        raise UserError(f"there is no whole {which} checkpoint ({why}): try checkpoint={other}, or train again")
    return path


def _weights(state: dict[str, Any], trained: DictConfig, path: Path) -> dict[str, Tensor]:
    """The weights of the stage as its artifact holds them, averaged where the run keeps an average."""
    weights: dict[str, Tensor] = dict(state["state_dict"])
    for node in filter(None, trained.callbacks.values()):
        if node._target_ == f"{Ema.__module__}.{Ema.__qualname__}":
            kept = state["callbacks"].get(Ema.__qualname__)
            if kept is None:
                raise UserError(
                    f"{path} keeps no average, which its config.yaml asks for: bring the old config.yaml back"
                )
            average = kept["average"]
            weights |= {f"{node.module}.{name}": value for name, value in average.items()}
    prefix = stage_of(trained.stage).learned
    return {name.removeprefix(prefix): value for name, value in weights.items() if name.startswith(prefix)}


def _metrics(run: Path, step: int) -> dict[str, float]:
    """The last value of every metric that was logged within the first ``step`` steps."""
    curves = read_metrics(run / "metrics.csv") if (run / "metrics.csv").is_file() else {}
    known = {name: [value for at, value in points if at < step] for name, points in curves.items()}
    return {name: values[-1] for name, values in known.items() if values}
