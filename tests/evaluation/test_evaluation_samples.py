"""Comparison of two sets of items: streamed, with any number of samples, equal however the sets are cut."""

from __future__ import annotations

import pytest
import torch

from ldm_lightning.data.batch import Batch
from ldm_lightning.evaluation.comparison import Comparison
from ldm_lightning.evaluation.samples import measure_samples
from ldm_lightning.metrics.class_accuracy import Judge
from ldm_lightning.metrics.extractor import Extractor
from ldm_lightning.metrics.frechet import frechet_distance

CPU = torch.device("cpu")


class Pixels(Extractor):
    """Pixels as features, counted."""

    def __init__(self, name: str = "pixels") -> None:
        super().__init__(name, 4, torch.nn.Identity())
        self.seen = 0

    def features(self, images: torch.Tensor) -> torch.Tensor:
        self.seen += len(images)
        return images.flatten(1)


def items(n: int, seed: int) -> torch.Tensor:
    return 0.3 * torch.randn(n, 1, 2, 2, generator=torch.Generator().manual_seed(seed)).clamp(-3, 3)


def in_batches(x: torch.Tensor, size: int) -> list[Batch]:
    numbers = torch.arange(len(x))
    return [Batch(x[part], part, {"class": part % 2}) for part in numbers.split(size)]


def distance(one: torch.Tensor, other: torch.Tensor) -> float:
    one, other = one.flatten(1).double(), other.flatten(1).double()
    return frechet_distance(one.mean(0), one.T.cov(), other.mean(0), other.T.cov())


@pytest.mark.parametrize("size", [1, 7, 60])
def test_figures_do_not_depend_on_the_pieces(size):
    real, other = items(60, 0), items(45, 1) + 0.2
    comparison = Comparison([Pixels()])
    for part in real.split(size):
        comparison.update(part, real=True)
    for part in other.split(size):
        comparison.update(part, real=False)
    (label, value), *_ = comparison.compute().items()
    assert label == "fd_pixels@45_too_few"
    assert value == pytest.approx(distance(real, other), rel=1e-9)


def test_an_item_passes_each_extractor_once():
    extractors = [Pixels("one"), Pixels("two")]
    comparison = Comparison(extractors, keep_reference=True)
    comparison.update(items(30, 0), real=True)
    comparison.update(items(20, 1), real=False)
    assert len(comparison.compute()) == 2
    assert [extractor.seen for extractor in extractors] == [50, 50]


def test_the_reference_stays():
    comparison = Comparison([Pixels()], keep_reference=True)
    assert not comparison.has_reference
    comparison.update(items(60, 0), real=True)
    comparison.update(items(45, 1), real=False)
    comparison.compute()
    comparison.reset()
    assert comparison.has_reference
    comparison.update(items(20, 2), real=False)
    assert comparison.compute()["fd_pixels@20_too_few"] == pytest.approx(distance(items(60, 0), items(20, 2)))


@pytest.mark.parametrize("n", [20, 110])  # fewer and more than there are real items
def test_any_number_of_samples_is_compared(n):
    real, floor, asked = items(50, 0), items(30, 1), []

    def draw(batches, conditions):
        for numbers in batches:
            asked.extend(conditions(numbers)["class"].tolist())
            yield items(200, 3)[numbers]

    measured = measure_samples(
        draw,
        n,
        reference=in_batches(real, 8),
        floor=in_batches(floor, 9),
        batch_size=16,
        extractors=[Pixels()],
        judge=None,
        device=CPU,
        shown=18,
    )
    (name, figure), *others = measured.figures.items()
    assert not others
    assert name == f"fd_pixels@{n}" + ("" if n >= 100 else "_too_few")
    assert figure["value"] == pytest.approx(distance(real, items(200, 3)[:n]), rel=1e-9)
    assert figure["real"] == pytest.approx(distance(real, floor), rel=1e-9)
    assert measured.real == 50
    assert measured.shown is not None
    assert torch.equal(measured.shown, items(200, 3)[:18])
    assert asked == [number % 30 % 2 for number in range(n)]  # the conditions of the floor's items, in turn


def test_the_judge_reads_samples_and_real_items():
    class Right(Judge):
        def forward(self, images: torch.Tensor) -> torch.Tensor:  # class 1 is bright
            bright = images.mean((1, 2, 3)) > 0
            return torch.stack([~bright, bright], 1).float()

    def bright(numbers: torch.Tensor) -> torch.Tensor:
        return (2.0 * (numbers % 2) - 1).view(-1, 1, 1, 1).expand(-1, 1, 16, 16)

    def draw(batches, conditions):  # every fourth sample is of the wrong class
        for numbers in batches:
            yield bright(conditions(numbers)["class"] + (numbers % 4 == 0).long())

    measured = measure_samples(
        draw,
        40,
        reference=in_batches(bright(torch.arange(20)), 6),
        floor=in_batches(bright(torch.arange(10)), 6),
        batch_size=7,
        extractors=[],
        judge=Right(1, 2),
        device=CPU,
    )
    assert measured.figures["class_accuracy@40"] == {"value": pytest.approx(0.75), "real": 1.0}
