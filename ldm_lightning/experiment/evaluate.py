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

import math
import platform
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from tqdm import tqdm

from ldm_lightning import __version__
from ldm_lightning.callbacks.picture_grid import enlarged, grid, png
from ldm_lightning.data.batch import Batch
from ldm_lightning.data.datamodule import DataModule
from ldm_lightning.data.loader import Loader
from ldm_lightning.errors import UserError
from ldm_lightning.evaluation.figures import Figures
from ldm_lightning.evaluation.first_stage import measure_first_stage
from ldm_lightning.evaluation.likelihood import measure_likelihood
from ldm_lightning.evaluation.samples import measure_samples
from ldm_lightning.experiment import build
from ldm_lightning.experiment.latent_data import show_pictures
from ldm_lightning.experiment.load import default_device, load_first_stage, load_latent_diffusion
from ldm_lightning.experiment.result import check_result, publish
from ldm_lightning.experiment.run_folder import check_length, check_writable
from ldm_lightning.experiment.sampling import choose_sampler, draw
from ldm_lightning.experiment.saved import read_manifest
from ldm_lightning.experiment.schema import check, check_numbers
from ldm_lightning.metrics.class_accuracy import Judge, fit_judge
from ldm_lightning.metrics.frechet import FEW, TOO_FEW
from ldm_lightning.training.latent_diffusion import LatentDiffusion

__all__ = ["Evaluation", "evaluate"]

_Measured = tuple[Figures, dict[str, Any], bytes | None]  # figures, protocol, the content of a picture
_MOST = 1000  # pictures, if n leaves it open
_JUDGE_BYTES = 2 * 2**30  # of the pictures that a judge learns from, which are all in memory


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
    show_pictures(trained)
    build.move_pictures(trained, config.root)
    data = build.data_module(trained)
    if data.fingerprint != trained.derived.data:
        raise UserError(
            f"the data set is not the one {config.run} was trained on (another fingerprint): its split may leak; "
            "restore the pictures, or train again"
        )
    folder = Path(config.run) / "evaluation"
    check_writable(folder, "make it writable, or evaluate a copy of the run")
    drawn = manifest["kind"] == "latent_diffusion" and bool(config.grid)
    check_result(folder, str(config.name), picture=drawn, mend="name=")
    measure = {"first_stage": _first_stage, "latent_diffusion": _latent_diffusion}[manifest["kind"]]
    figures, protocol, sheet = measure(config, data)
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
        "first_stage": "itself" if manifest["kind"] == "first_stage" else trained.derived.first_stage[:12],
        "trained_in": trained.trainer.precision,
        "machine": torch.cuda.get_device_name() if default_device().type == "cuda" else _processor(),
    }
    page = publish(folder, str(config.name), {"figures": figures, "protocol": protocol}, sheet)
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


def _reference(config: DictConfig, data: DataModule) -> str:
    """The split that is the reference: the one asked for, else test pictures where there are any."""
    split: str = config.reference or ("test" if data.sizes["test"] else "validation")
    if not data.sizes.get(split):
        raise UserError(f"reference={split} holds no pictures (there are {data.sizes}): choose another")
    return split


def _first_stage(config: DictConfig, data: DataModule) -> _Measured:
    if config.get("likelihood"):
        raise UserError(f"likelihood= measures a second stage, but {config.run} holds a first stage: leave it out")
    trained, split = load_first_stage(config.run), _reference(config, data)
    figures, n = measure_first_stage(
        trained.module.autoencoder,
        _watched(data.loader(split, limit=config.n or _MOST), "reconstructing"),
        device=trained.device,
        perceptual={eye.label(data.shape[1:]): eye.distances for eye in _made(config, "perceptual")},
        extractors=_made(config, "extractor"),
    )
    return figures, {"reference": split, "n": n}, None


def _latent_diffusion(config: DictConfig, data: DataModule) -> _Measured:
    if config.get("perceptual"):
        raise UserError(f"perceptual= measures a first stage, but {config.run} holds a second stage: leave it out")
    trained = load_latent_diffusion(config.run, config.get("guidance"), config.scale)
    module, device, split = trained.module, trained.device, _reference(config, data)
    own = instantiate(config.sampler) if config.get("sampler") else None
    sampler = choose_sampler(module, own, config.steps)
    nll, nll_protocol = _likelihood(config, module, data, split) if config.get("likelihood") else ({}, {})
    judged, most, stream = config.judge and data.num_classes, config.n or _MOST, data.stream
    # No more pictures are read than are used: those to compare with, and the judge's own.
    read = min(data.sizes[split], math.ceil(most / (1 - config.judge_share if judged else 1)))
    share = round(read * config.judge_share) if judged else 0
    floors = min(most, read - share, data.sizes["train"])
    n = config.n or floors
    here = {"limit": read, "shuffle_seed": 0, "batch_size": config.batch_size}
    known = min(share, max(1, _JUDGE_BYTES // (4 * math.prod(data.shape))))
    judge = _fit_judge(stream(split, 0, known, **here), data.num_classes, config.seed, device) if judged else None
    samples = measure_samples(
        lambda batches, conditions: (
            pictures for _, pictures in draw(module, batches, conditions, seed=config.seed, sampler=sampler)
        ),
        n,
        reference=stream(split, share, share + floors, **here),
        floor=stream("train", 0, floors, limit=floors, shuffle_seed=1, batch_size=config.batch_size),
        batch_size=config.batch_size,
        extractors=_made(config, "extractor"),
        judge=judge,
        device=device,
        shown=config.grid,
    )
    sheet = None if samples.shown is None else png(enlarged(grid(samples.shown, config.columns)))
    protocol = {
        "reference": split,
        "n": n,
        "real": samples.real,
        "sampler": f"{type(sampler).__name__}, {sampler.evaluations} evaluations",
        "guidance": str(module.guidance),
        "seed": config.seed,
        "judge": f"trained on {known} other real pictures" if judge is not None else "none",
    }
    return samples.figures | nll, protocol | nll_protocol, sheet


def _likelihood(config: DictConfig, module: LatentDiffusion, data: DataModule, split: str) -> tuple[Figures, Any]:
    check(config.likelihood)
    return measure_likelihood(
        instantiate(config.likelihood),
        module.denoiser,
        module.first_stage,
        _watched(data.loader(split, limit=config.n or _MOST), "likelihood"),
        seed=config.seed,
        device=module.device,
        self_conditioned=bool(module.objective.self_conditioning),
    )


def _watched(batches: Loader, what: str) -> Iterator[Batch]:
    """These batches with a bar, which is there once the first is asked for."""
    yield from tqdm(batches, desc=what, unit="batch")


def _made(config: DictConfig, group: str) -> list[Any]:
    """What the option of this group describes, if one was chosen."""
    return [instantiate(config[group])] if config.get(group) else []


def _fit_judge(known: Iterable[Batch], num_classes: int, seed: int, device: torch.device) -> Judge:
    parts = [(batch.x, batch.condition["class"]) for batch in known]
    pictures, labels = (torch.cat(part) for part in zip(*parts, strict=True))
    with tqdm(desc="training the judge", unit="epoch") as bar:

        def progress(done: int, total: int, loss: float) -> None:
            bar.total = total
            bar.update()

        return fit_judge(pictures.to(device), labels, num_classes, seed=seed, progress=progress)
