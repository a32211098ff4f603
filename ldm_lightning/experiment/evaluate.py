"""Figures of a trained model, each with its protocol.

A second stage is measured by the Fréchet distance of its samples to real pictures it was not trained on, beside the
*floor*: the distance of as many real training pictures, of the samples' classes, to the same reference, which a model
that draws perfectly from its training set would reach. With classes, a *judge* (a small classifier trained on other
real pictures the model never saw) also tells how often a sample is read as the class asked for, beside its accuracy on
real pictures unknown to it. ``likelihood=...`` adds how likely the reference's latents are under the model. A first
stage is measured by its reconstructions (PSNR, SSIM, with ``perceptual=...`` a distance that was taught to see, with
``extractor=...`` their Fréchet distance), by what its latents cost under its prior (bits per pixel: the KL, for codes
their plain number), and by how many of its codes are in use.
"""

from __future__ import annotations

import platform
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf

from ldm_lightning import __version__
from ldm_lightning.errors import UserError
from ldm_lightning.evaluation.figures import Figures
from ldm_lightning.experiment import build
from ldm_lightning.experiment.load import default_device
from ldm_lightning.experiment.result import check_result, publish
from ldm_lightning.experiment.run_folder import check_length, check_writable
from ldm_lightning.experiment.saved import read_manifest
from ldm_lightning.experiment.schema import check, check_numbers
from ldm_lightning.experiment.stages import stage_of
from ldm_lightning.metrics.frechet import FEW, TOO_FEW

__all__ = ["Evaluation", "evaluate"]


@dataclass(frozen=True)
class Evaluation:
    """What was measured of a run.

    Attributes:
        figures: by name.
        protocol: how they came about.
        page: where both are kept.
        fewer: a line if there were fewer real pictures than asked for.
    """

    figures: Figures
    protocol: dict[str, Any]
    page: Path
    fewer: str | None


def evaluate(config: DictConfig) -> Evaluation:
    """Measure the model of a run, and keep it as ``evaluation/<name>.json`` there, beside earlier ones.

    Args:
        config: as of ``compose("evaluate", ["run=..."])``.

    Raises:
        UserError: settings that cannot be, or other data than the run was trained on.
    """
    check_numbers(
        config,
        {"n": int, "seed": int, "steps": int, "scale": float, "batch_size": int, "judge_share": float, "columns": int},
        {"n": 2, "seed": 0, "steps": 1, "batch_size": 1, "columns": 1},
    )
    if not 0 < config.judge_share < 1:
        raise UserError(f"judge_share={config.judge_share}: set it between 0 and 1, or judge=false")
    if not isinstance(config.judge, bool):
        raise UserError(f"judge={config.judge} is neither true nor false")
    if Path(str(config.name)).name != str(config.name):
        raise UserError(f"name={config.name} is not the name of a file in RUN/evaluation: leave out folders")
    check_length(str(config.name), spare=40)  # its endings, and what a file is called until it is whole
    check(config)
    manifest = read_manifest(config.run)
    trained = OmegaConf.create(manifest["config"])
    data = build.data_of_run(trained, config.root)
    if data.fingerprint != trained.derived.data:
        raise UserError(
            f"the data set is not the one {config.run} was trained on (another fingerprint): its split may leak; "
            "restore the pictures, or train again"
        )
    folder = Path(config.run) / "evaluation"
    check_writable(folder, "make it writable, or evaluate a copy of the run")
    stage = stage_of(manifest["kind"])
    drawn = stage.draws and bool(config.grid)
    check_result(folder, str(config.name), picture=drawn, mend="name=")
    measured = stage.measure(config, data)
    figures, protocol = measured.figures, measured.protocol
    if any(name.endswith(TOO_FEW) for name in figures):
        protocol["too_few"] = (
            f"below {FEW} pictures a Frechet distance tells their number more than the model: compare at equal n only"
        )
    protocol |= {
        "weights": manifest["sha256"][:12],
        "step": manifest["step"],
        "data": trained.derived.data,
        "version": __version__,
        "torch": torch.__version__,
        "first_stage": trained.derived.first_stage[:12] if stage.stands_on_first_stage else "itself",
        "trained_in": trained.trainer.precision,
        "machine": torch.cuda.get_device_name() if default_device().type == "cuda" else _processor(),
    }
    page = publish(folder, str(config.name), {"figures": figures, "protocol": protocol}, measured.sheet)
    return Evaluation(figures, protocol, page, _fewer(config.n, protocol, data.sizes))


def _fewer(asked: int | None, protocol: Mapping[str, Any], sizes: Mapping[str, int]) -> str | None:
    there = protocol.get("real", protocol["n"])
    if asked is None or there >= asked:
        return None
    why = f"the {protocol['reference']} split has {sizes[protocol['reference']]}"
    if "real" not in protocol:
        return f"measured on n={there} pictures, not on {asked}: {why}"
    why += f" and the training split {sizes['train']}, and a judge learns from some of them"
    return f"{asked} samples beside {there} real pictures: {why}"


def _processor() -> str:
    return f"{platform.machine()}, {torch.get_num_threads()} threads"
