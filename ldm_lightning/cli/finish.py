"""``ldm finish``: the model of a run from one of its checkpoints, without training on.

For a run whose best validation lies before its end, and for one that was stopped and will not go on. What it writes is
what the end of training writes: averaged weights and, for a first stage, the statistics of its latents.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import torch
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

from ldm_lightning.callbacks.checkpoints import BEST, intact, latest
from ldm_lightning.callbacks.ema import Ema
from ldm_lightning.callbacks.export import Export
from ldm_lightning.cli import build
from ldm_lightning.cli.launch import make_trainer
from ldm_lightning.cli.run_folder import check_writable, lock, read_config
from ldm_lightning.cli.trained import device
from ldm_lightning.data.batch import Batch
from ldm_lightning.errors import UserError, nearest
from ldm_lightning.loggers.csv_log import read_metrics

__all__ = ["main"]

_PLACES = {"best": "best", "last": "export"}


def main(config: DictConfig) -> None:
    """Write the model, and say of which step it is."""
    if config.checkpoint not in _PLACES:
        mend = nearest(str(config.checkpoint), _PLACES)
        raise UserError(f"checkpoint={config.checkpoint} is none of {', '.join(_PLACES)}{mend}")
    run = Path(config.run).absolute()
    trained = OmegaConf.create(read_config(run))
    folder = run / _PLACES[config.checkpoint]
    check_writable(folder, "make it writable")
    with lock(run):
        state = _state(run, config.checkpoint)
        pictures = _pictures(trained, config.root)
        trained.trainer.update(devices=1, num_nodes=1, strategy="auto", accelerator=device().type, precision="32-true")
        trained.run_dir = str(run)  # it may have been moved, and its first stage trained again elsewhere
        if (run / "first_stage").is_dir():
            trained.first_stage.run = str(run / "first_stage")
        module = build.stage(trained)
        module.load_state_dict(state["state_dict"])
        module.trainer = make_trainer(trained, logger=False, enable_checkpointing=False)
        figures, average = _figures(run, state["global_step"]), _average(trained, state)
        with average.averaged(module) if average else nullcontext():
            export = Export(folder, read_config(run), pictures)
            export.save(module.to(device()), state["global_step"], figures)
    loss = f", val/loss {figures['val/loss']:.4g}" if "val/loss" in figures else ""
    print(f"model of step {state['global_step']}{loss}: {folder}")


def _state(run: Path, checkpoint: str) -> dict[str, Any]:
    """What a checkpoint holds."""
    places = run / "checkpoints"
    path = latest(places) if checkpoint == "last" else places / BEST
    if path is None or not path.exists():
        when = "a validation" if checkpoint == "best" else "every callbacks.checkpoints.every_n_steps and at a stop"
        raise UserError(f"{run} holds no {checkpoint} checkpoint, which is saved after {when}: train on")
    if not intact(path):
        raise UserError(f"{path} is damaged: take checkpoint=last, or train again")
    state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    return state


def _pictures(trained: DictConfig, root: str | None) -> Callable[[], Iterable[Batch]]:
    """What a first stage measures its latents on: the very pictures that it was trained on."""
    if trained.stage != "first_stage":
        return lambda: ()
    if root is not None:
        trained.data.root = trained.data.source.root = str(Path(root).absolute())
    data = build.data_module(trained)
    if data.fingerprint != trained.derived.data:
        raise UserError(
            "the pictures are not those that this run was trained on, and its latents are measured on them: give the "
            "folder of the old ones by root=..."
        )
    return partial(data.loader, "train", trained.statistics_pictures)


def _average(trained: DictConfig, state: dict[str, Any]) -> Ema | None:
    """The average of the weights, if the run keeps one."""
    made = (instantiate(node) for node in trained.callbacks.values() if node)
    average = next((callback for callback in made if isinstance(callback, Ema)), None)
    if average is not None:
        average.load_state_dict(state["callbacks"][average.state_key])
    return average


def _figures(run: Path, step: int) -> dict[str, float]:
    """What the validation after ``step`` optimizer steps logged."""
    curves = read_metrics(run / "metrics.csv") if (run / "metrics.csv").is_file() else {}
    known = {name: dict(points).get(step - 1) for name, points in curves.items() if name.startswith("val/")}
    return {name: value for name, value in known.items() if value is not None}
