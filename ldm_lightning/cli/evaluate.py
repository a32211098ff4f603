"""``ldm evaluate``: figures of a trained model, each with its protocol.

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
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from rich.console import Console
from rich.table import Table
from torch import Tensor
from tqdm import tqdm

from ldm_lightning import __version__
from ldm_lightning.callbacks.picture_grid import enlarged, grid, png
from ldm_lightning.cli import build
from ldm_lightning.cli.latent_data import show_pictures
from ldm_lightning.cli.likelihood import measure_likelihood
from ldm_lightning.cli.result import check_result, publish
from ldm_lightning.cli.run_folder import check_length, check_writable
from ldm_lightning.cli.sample import choose, draw
from ldm_lightning.cli.saved import read_manifest
from ldm_lightning.cli.schema import check, check_numbers
from ldm_lightning.cli.trained import device, load_first_stage, load_latent_diffusion
from ldm_lightning.data.batch import Batch
from ldm_lightning.data.datamodule import DataModule
from ldm_lightning.errors import UserError
from ldm_lightning.latent.codes import CodeUsage
from ldm_lightning.metrics.class_accuracy import ClassAccuracy, Judge, JudgeExtractor, fit_judge
from ldm_lightning.metrics.extractor import Extractor
from ldm_lightning.metrics.frechet import FEW, TOO_FEW, FrechetDistance
from ldm_lightning.metrics.reconstruction import PictureMean, reconstruction_metrics

__all__ = ["main"]

_Measured = tuple[dict[str, Any], dict[str, Any], bytes | None]  # figures, protocol, the content of a picture


def main(config: DictConfig) -> None:
    """Measure, print a table, and keep it as ``evaluation/<name>.json`` in the run folder, beside earlier ones."""
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
    if (n := protocol["n"]) < config.n:
        split = protocol["reference"]
        why = f"the {split} split has {data.sizes[split]}"
        why += ", and a judge learns from some of them" if manifest["kind"] == "latent_diffusion" else ""
        print(f"ldm evaluate: measured on n={n} pictures, not on {config.n}: {why}", file=sys.stderr)
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
        "machine": torch.cuda.get_device_name() if device().type == "cuda" else _processor(),
    }
    _print(figures, protocol, Path(config.run).name)
    print(f"metrics: {publish(folder, str(config.name), {'figures': figures, 'protocol': protocol}, sheet)}")


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
    module = load_first_stage(config.run).module
    split = _reference(config, data)
    autoencoder = module.autoencoder
    metrics, nats, count = reconstruction_metrics(), 0.0, 0
    usage = CodeUsage(autoencoder.bottleneck.groups, autoencoder.bottleneck.codes)
    perceived = {
        eye.label(data.shape[1:]): PictureMean(eye.distances).to(device()) for eye in _made(config, "perceptual")
    }
    distances = [FrechetDistance(extractor).to(device()) for extractor in _made(config, "extractor")]
    for batch in tqdm(data.loader(split, limit=config.n), desc="reconstructing", unit="batch"):
        shown = batch.x.to(module.device)
        with torch.no_grad():
            posterior = autoencoder.encode(shown)
            z = posterior.mode()
            seen = autoencoder.decode(z)
        metrics.update(seen.cpu(), batch.x)
        nats += posterior.kl().sum().item() * z[0].numel()
        if (numbers := posterior.numbers()) is not None:
            usage.update(numbers.cpu())
        for metric in perceived.values():
            metric.update(seen, shown)
        for distance in distances:
            distance.update(shown, real=True)
            distance.update(seen, real=False)
        count += len(batch)
    values = metrics.compute() | {name: metric.compute() for name, metric in perceived.items()}
    figures = {f"{name}@{count}": {"value": float(value)} for name, value in values.items()}
    figures[f"latent_bits_per_pixel@{count}"] = {"value": nats / math.log(2) / (count * math.prod(data.shape[1:]))}
    if autoencoder.bottleneck.codes:
        figures |= {f"{name}@{count}": {"value": float(value)} for name, value in usage.compute().items()}
    figures |= {f"r{distance.label}": {"value": float(distance.compute())} for distance in distances}
    return figures, {"reference": split, "n": count}, None


def _latent_diffusion(config: DictConfig, data: DataModule) -> _Measured:
    if config.get("perceptual"):
        raise UserError(f"perceptual= measures a first stage, but {config.run} holds a second stage: leave it out")
    module = load_latent_diffusion(config.run, config.get("guidance"), config.scale).module
    sampler = choose(config, module)
    split = _reference(config, data)
    nll, nll_protocol = measure_likelihood(config, module, data, split) if config.get("likelihood") else ({}, {})
    extractors, figures = _made(config, "extractor"), {}
    judge, share = None, 0
    judged = config.judge and data.num_classes
    # No more pictures are read than are used: n to compare with, and the judge's own.
    reference = data.pictures(split, math.ceil(config.n / (1 - config.judge_share if judged else 1)), shuffle_seed=0)
    if judged:
        share = round(len(reference) * config.judge_share)
        known, reference = _cut(reference, 0, share), _cut(reference, share, len(reference))
        judge = _fit_judge(known, data.num_classes, config.seed)
        extractors.append(JudgeExtractor(judge))
    floor = data.pictures("train", min(config.n, len(reference)), shuffle_seed=1)
    n = len(floor)
    reference = _cut(reference, 0, n)
    distances = [_to_real(extractor, reference.x, config.batch_size) for extractor in extractors]
    accuracy = None if judge is None else ClassAccuracy(judge).to(device())
    batches = torch.arange(n).split(config.batch_size)

    def conditions(numbers: Tensor) -> dict[str, Tensor]:
        """Those of the floor's pictures, so that the two differ in the pictures alone."""
        return {name: value[numbers] for name, value in floor.condition.items()}

    shown: list[Tensor] = []
    samples = draw(module, batches, conditions, seed=config.seed, sampler=sampler)
    for numbers, pictures in zip(batches, samples, strict=True):
        for distance in distances:
            distance.update(pictures.to(device()), real=False)
        if accuracy is not None:
            accuracy.update(pictures.to(device()), conditions(numbers)["class"].to(device()))
        if (room := config.grid - sum(map(len, shown))) > 0:
            shown.append(pictures[:room].clone())  # not a view, which would keep its whole batch
    for distance in distances:
        value, label = float(distance.compute()), distance.label
        figures[label] = {"value": value, "real": _floor(distance, floor.x, config.batch_size)}
    if judge is not None and accuracy is not None:
        figures[f"class_accuracy@{n}"] = {
            "value": float(accuracy.compute()["accuracy"]),
            "real": _accuracy(judge, reference.x, reference.condition["class"]),
        }
    sheet = png(enlarged(grid(torch.cat(shown), config.columns))) if config.grid else None
    protocol = {
        "reference": split,
        "n": n,
        "sampler": f"{type(sampler).__name__}, {sampler.evaluations} evaluations",
        "guidance": str(module.guidance),
        "seed": config.seed,
        "judge": f"trained on {share} other real pictures" if judge is not None else "none",
    }
    return figures | nll, protocol | nll_protocol, sheet


def _made(config: DictConfig, group: str) -> list[Any]:
    """What the option of this group describes, if one was chosen."""
    return [instantiate(config[group])] if config.get(group) else []


def _fit_judge(known: Batch, num_classes: int, seed: int) -> Judge:
    with tqdm(desc="training the judge", unit="epoch") as bar:

        def progress(done: int, total: int, loss: float) -> None:
            bar.total = total
            bar.update()

        return fit_judge(known.x.to(device()), known.condition["class"], num_classes, seed=seed, progress=progress)


def _cut(batch: Batch, start: int, stop: int) -> Batch:
    condition = {name: value[start:stop] for name, value in batch.condition.items()}
    return Batch(batch.x[start:stop], batch.index[start:stop], condition)


def _to_real(extractor: Extractor, real: Tensor, batch_size: int) -> FrechetDistance:
    """The distance to these real pictures."""
    metric = FrechetDistance(extractor, keep_reference=True).to(device())
    for part in real.split(batch_size):
        metric.update(part.to(device()), real=True)
    return metric


def _floor(distance: FrechetDistance, pictures: Tensor, batch_size: int) -> float:
    """The distance of other real pictures."""
    distance.reset()
    for part in pictures.split(batch_size):
        distance.update(part.to(device()), real=False)
    return float(distance.compute())


def _accuracy(judge: Judge, pictures: Tensor, labels: Tensor) -> float:
    metric = ClassAccuracy(judge).to(device())
    for part, own in zip(pictures.split(256), labels.split(256), strict=True):
        metric.update(part.to(device()), own.to(device()))
    return float(metric.compute()["accuracy"])


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
