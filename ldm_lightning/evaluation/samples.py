"""How far samples are from real items, and whether they are of the class that was asked for."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ldm_lightning.data.batch import Batch
from ldm_lightning.evaluation.comparison import Comparison
from ldm_lightning.evaluation.figures import Figures, number
from ldm_lightning.metrics.class_accuracy import ClassAccuracy, Judge, JudgeExtractor
from ldm_lightning.metrics.extractor import Extractor

__all__ = ["Draw", "SampleFigures", "measure_samples"]

Conditions = Callable[[Tensor], Mapping[str, Tensor]]
Draw = Callable[[Sequence[Tensor], Conditions], Iterator[Tensor]]
"""Draws samples (B, C, *space) in [-1, 1]: of given numbers, a batch each, under the conditions of such numbers."""


@dataclass(frozen=True)
class SampleFigures:
    """What came of measuring samples.

    Attributes:
        figures: by name, those of real pictures beside them.
        real: number of reference items.
        shown: the first samples, (N, C, *space) in [-1, 1].
    """

    figures: Figures
    real: int
    shown: Tensor | None


def measure_samples(
    draw: Draw,
    n: int,
    *,
    reference: Iterable[Batch],
    floor: Iterable[Batch],
    batch_size: int,
    extractors: Sequence[Extractor],
    judge: Judge | None,
    device: torch.device,
    shown: int = 0,
) -> SampleFigures:
    """Compare ``n`` samples with a reference, in pieces, so that memory does not grow with the number of items.

    Args:
        draw: draws samples.
        n: how many.
        reference: real items that the model was not trained on.
        floor: items that it was trained on. Their distance to the reference is what a model would reach that draws
            perfectly from its training set. Samples are drawn under their conditions, in turn, so that the two differ
            in the items alone.
        batch_size: samples at once.
        extractors: for one Frechet distance each.
        judge: trained on other real items, if class accuracy is to be measured.
        device: where the figures are computed.
        shown: how many of the samples are to be kept.
    """
    extractors = [*extractors, *([JudgeExtractor(judge)] if judge is not None else ())]
    comparison = Comparison(extractors, keep_reference=True).to(device)
    accuracy = None if judge is None else ClassAccuracy(judge).to(device)
    real = 0
    for batch in reference:
        own = batch.to(device)
        comparison.update(own.x, real=True)
        if accuracy is not None:
            accuracy.update(own.x, own.condition["class"])
        real += len(batch)
    accurate = None if accuracy is None else accuracy.compute()["accuracy"]
    asked: list[Mapping[str, Tensor]] = []
    for batch in floor:
        comparison.update(batch.x.to(device), real=False)
        asked.append(batch.condition)
    condition = {name: torch.cat([part[name] for part in asked]) for name in (asked[0] if asked else ())}
    floors = comparison.compute()
    comparison.reset()
    if accuracy is not None:
        accuracy.reset()

    def conditions(numbers: Tensor) -> dict[str, Tensor]:
        return {name: values[numbers % len(values)] for name, values in condition.items()}

    batches, kept = torch.arange(n).split(batch_size), list[Tensor]()
    for numbers, samples in zip(batches, draw(batches, conditions), strict=True):
        drawn = samples.to(device)
        comparison.update(drawn, real=False)
        if accuracy is not None:
            accuracy.update(drawn, conditions(numbers)["class"].to(device))
        if (room := shown - sum(map(len, kept))) > 0:
            kept.append(samples[:room].clone())  # not a view, which would keep its whole batch
    # The floor's labels tell its own number, so the two meet by their place.
    pairs = zip(comparison.compute().items(), floors.values(), strict=True)
    figures = {label: number(value, below) for (label, value), below in pairs}
    if accuracy is not None:
        figures[f"class_accuracy@{n}"] = number(accuracy.compute()["accuracy"], accurate)
    return SampleFigures(figures, real, torch.cat(kept) if kept else None)
