"""The stage ``latent_diffusion``: a denoiser in the latent space of a frozen first stage."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from hydra.utils import instantiate
from omegaconf import DictConfig
from torch import Tensor
from tqdm import tqdm

from ldm_lightning.callbacks.picture_grid import enlarged, grid, png
from ldm_lightning.data.batch import Batch
from ldm_lightning.data.datamodule import DataModule
from ldm_lightning.diagnosis import Trial
from ldm_lightning.diffusion.guidance import ClassifierFree
from ldm_lightning.errors import UserError
from ldm_lightning.evaluation.figures import Figures
from ldm_lightning.evaluation.likelihood import measure_likelihood
from ldm_lightning.evaluation.samples import measure_samples
from ldm_lightning.experiment import build as parts
from ldm_lightning.experiment.denoiser import denoiser, fill
from ldm_lightning.experiment.latent_data import is_cached
from ldm_lightning.experiment.load import load_latent_diffusion
from ldm_lightning.experiment.measuring import MOST, Measured, made, reference_split, watched
from ldm_lightning.experiment.run_folder import first_stage_of
from ldm_lightning.experiment.sampling import choose_sampler, describe, draw
from ldm_lightning.experiment.schema import check
from ldm_lightning.experiment.trial import DRAWS, ITEMS, LEAST, affordable
from ldm_lightning.loss import total
from ldm_lightning.metrics.class_accuracy import Judge, fit_judge
from ldm_lightning.nn.count import multiply_adds
from ldm_lightning.rng import Streams
from ldm_lightning.training.latent_diffusion import LatentDiffusion

__all__ = ["build", "derive", "details", "load", "measure", "operations", "trial"]

load = load_latent_diffusion
_JUDGE_BYTES = 2 * 2**30  # of the pictures that a judge learns from, which are all in memory


def derive(config: DictConfig, data: DataModule) -> dict[str, Any]:
    """Latent channels, and the checksum of the first stage that it stands on."""
    parts.check_one_first_stage(config)
    if parts.stands_alone(config):
        autoencoder = parts.autoencoder_of(config)
        if parts.trains(autoencoder):
            raise UserError(
                "this first stage must be trained before: ldm train stage=first_stage first_stage=..., "
                "then first_stage=trained first_stage.run=FOLDER here"
            )
        return {"latent_channels": autoencoder.latent_channels, "first_stage": "identity"}
    trained = parts.trained_first_stage(config, data)
    return {"latent_channels": trained["config"]["derived"]["latent_channels"], "first_stage": trained["sha256"]}


def build(config: DictConfig) -> LatentDiffusion:
    """The second stage in training."""
    module = parts.latent_diffusion(config, None if parts.stands_alone(config) else first_stage_of(config))
    if is_cached(config):
        module.first_stage = module.first_stage.for_cache()
    return module


def measure(config: DictConfig, data: DataModule) -> Measured:
    """Its samples beside real pictures, see the head of `ldm_lightning.experiment.evaluate`."""
    if config.get("perceptual"):
        raise UserError(f"perceptual= measures a first stage, but {config.run} holds a second stage: leave it out")
    trained = load_latent_diffusion(config.run, config.get("guidance"), config.scale)
    module, device, split = trained.module, trained.device, reference_split(config, data)
    own = instantiate(config.sampler) if config.get("sampler") else None
    sampler = choose_sampler(module, own, config.steps)
    nll, nll_protocol = _likelihood(config, module, data, split) if config.get("likelihood") else ({}, {})
    judged, most, stream = config.judge and data.num_classes, config.n or MOST, data.stream
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
        extractors=made(config, "extractor"),
        judge=judge,
        device=device,
        shown=config.grid,
    )
    sheet = None if samples.shown is None else png(enlarged(grid(samples.shown, config.columns)))
    protocol = {
        "reference": split,
        "n": n,
        "real": samples.real,
        "sampler": describe(sampler),
        "guidance": str(module.guidance),
        "seed": config.seed,
        "judge": f"trained on {known} other real pictures" if judge is not None else "none",
    }
    return Measured(samples.figures | nll, protocol | nll_protocol, sheet)


def _likelihood(config: DictConfig, module: LatentDiffusion, data: DataModule, split: str) -> tuple[Figures, Any]:
    check(config.likelihood)
    # Closed, so that a message about the first batch begins on a line of its own.
    with closing(watched(data.loader(split, limit=config.n or MOST), "likelihood")) as batches:
        return measure_likelihood(
            instantiate(config.likelihood),
            module.denoiser,
            module.first_stage,
            batches,
            seed=config.seed,
            device=module.device,
            self_conditioned=bool(module.objective.self_conditioning),
        )


def _fit_judge(known: Iterable[Batch], num_classes: int, seed: int, device: torch.device) -> Judge:
    parts = [(batch.x, batch.condition["class"]) for batch in known]
    pictures, labels = (torch.cat(part) for part in zip(*parts, strict=True))
    with tqdm(desc="training the judge", unit="epoch") as bar:

        def progress(done: int, total: int, loss: float) -> None:
            bar.total = total
            bar.update()

        return fit_judge(pictures.to(device), labels, num_classes, seed=seed, progress=progress)


def details(config: DictConfig, weights: Mapping[str, Tensor], root: str | None, place: str) -> dict[str, Any]:
    """Nothing, once the weights were seen to fit: what does not is said now, not by the next verb."""
    fill(denoiser(config).network, weights, place)
    return {}


def operations(module: LatentDiffusion, data: DataModule) -> Mapping[str, int]:
    """Multiply-adds of one evaluation of the network."""
    z, t = torch.zeros(1, *module.latent_shape, device=module.device), torch.full((1,), 0.5, device=module.device)
    condition = {name: value.to(module.device) for name, value in data.conditions(1).items()}
    return {"an evaluation": multiply_adds(module.denoiser.network, z, t, condition)}


def trial(run: str | Path, data: DataModule) -> Trial | str:
    """Its errors on validation items, and samples under their conditions."""
    module = load(run).module
    device, (each,) = module.device, operations(module, data).values()
    n = affordable(device, each, ITEMS)
    if n < LEAST:
        return "asking the denoiser a few times would take minutes here"
    errors = [_errors(module, batch.to(device)).cpu() for batch in data.loader("validation", limit=n)]
    found = Trial(data.sizes["validation"], torch.cat(errors))
    draws = affordable(device, each * module.sampler.evaluations, DRAWS)
    if draws < min(LEAST, len(found.errors)):
        return replace(found, missing=f"drawing {LEAST} samples would take minutes here: look at samples/")
    real, drawn = [], []
    for batch in data.loader("validation", limit=draws):
        own = batch.to(device)
        real.append(module.first_stage.encode(own.x, Streams(module.seed, own.index)).cpu())
        drawn.append(module.sample_latents(own.index, own.condition, module.seed, guidance=ClassifierFree()).cpu())
    return replace(found, real=torch.cat(real), drawn=torch.cat(drawn))


@torch.no_grad()
def _errors(module: LatentDiffusion, batch: Batch) -> Tensor:
    """(B,) losses of a batch, as validation has them."""
    streams = Streams(module.seed, batch.index)
    z0 = module.first_stage.encode(batch.x, streams)
    return total(module.objective.losses(module.denoiser, z0, batch.condition, streams))
