r"""Fréchet distance between two sets of pictures.

Features of the real and of the generated pictures are each summarized by a mean and a covariance; between the two
Gaussians with these moments the squared Fréchet (2-Wasserstein) distance is (Dowson & Landau 1982, eq. 4)

.. math:: d^2 = |\mu_1 - \mu_2|^2 + \mathrm{tr}(\Sigma_1 + \Sigma_2 - 2 (\Sigma_1 \Sigma_2)^{1/2}).

With Inception features this is the FID (Heusel et al. 2017). It is biased upwards for few samples, so the number of
generated samples belongs to the figure: see :attr:`FrechetDistance.label`.

How far two sets of N real digits are apart, in shares of their features' total variance, where 0 would be right:

======== ==== ==== ==== ==== ==== ==== =====
features N=11 N=22 N=50  100  200  500  1000
======== ==== ==== ==== ==== ==== ==== =====
196 wide 1.30 0.79 0.51 0.26 0.13 0.06 0.027
512 wide 1.36 0.86 0.56 0.34 0.19 0.08 0.043
======== ==== ==== ==== ==== ==== ==== =====

(pixels of 14x14, and these by a random layer with ReLU; three draws, +- 0.01 from N=100 on). Their covariances have the
effective rank 22, and that decides, not the width: a figure of N below the width need not be a bad one.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torchmetrics import Metric

from ldm_lightning.errors import UserError
from ldm_lightning.metrics.extractor import Extractor

__all__ = ["FEW", "TOO_FEW", "FrechetDistance", "frechet_distance"]

FEW = 100  # pictures, below which the bias alone is more than a quarter of the features' variance; see above
TOO_FEW = "_too_few"  # what then ends the key


def frechet_distance(mean1: Tensor, cov1: Tensor, mean2: Tensor, cov2: Tensor) -> float:
    r"""Squared Fréchet distance of two Gaussians, in float64.

    :math:`\mathrm{tr} (\Sigma_1 \Sigma_2)^{1/2}` is the sum of the square roots of the eigenvalues of the symmetric
    :math:`\Sigma_1^{1/2} \Sigma_2 \Sigma_1^{1/2}`, which stay real and finite for singular covariances, where a
    general matrix square root does not.

    Args:
        mean1: (D,) mean of the first Gaussian.
        cov1: (D, D) covariance of the first Gaussian, symmetric positive semi-definite.
        mean2: (D,) mean of the second.
        cov2: (D, D) covariance of the second.

    Returns:
        The distance, at least 0; NaN if a moment is not finite.
    """
    mean1, cov1, mean2, cov2 = (moment.double() for moment in (mean1, cov1, mean2, cov2))
    if not all(bool(moment.isfinite().all()) for moment in (mean1, cov1, mean2, cov2)):
        return math.nan  # a diverged model has no distance, and its run should survive the validation
    values, vectors = torch.linalg.eigh(cov1)
    root = (vectors * values.clamp(min=0).sqrt()) @ vectors.T
    cross = torch.linalg.eigvalsh(root @ cov2 @ root).clamp(min=0).sqrt().sum()
    distance = (mean1 - mean2).square().sum() + cov1.trace() + cov2.trace() - 2 * cross
    return max(float(distance), 0.0)


class FrechetDistance(Metric):
    """Fréchet distance of generated to real pictures in the feature space of ``extractor``.

    The states are float64 sums, so the figure depends neither on the batch split nor on the number of ranks.

    Args:
        extractor: maps pictures in [-1, 1] to features.
        keep_reference: the statistics of the real pictures survive :meth:`reset`, for validation again and again
            against the same reference.
    """

    is_differentiable = False
    higher_is_better = False
    full_state_update = False
    real_count: Tensor
    real_sum: Tensor
    real_outer: Tensor
    generated_count: Tensor
    generated_sum: Tensor
    generated_outer: Tensor

    def __init__(self, extractor: Extractor, *, keep_reference: bool = False) -> None:
        super().__init__()
        self.extractor = extractor
        self.keep_reference = keep_reference
        self._evaluated: int | None = None
        for side in ("real", "generated"):
            zeros = torch.zeros(extractor.dim, extractor.dim, dtype=torch.float64)
            self.add_state(f"{side}_count", torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")
            self.add_state(f"{side}_sum", zeros[0].clone(), dist_reduce_fx="sum")
            self.add_state(f"{side}_outer", zeros, dist_reduce_fx="sum")

    def update(self, images: Tensor, real: bool) -> None:
        """Add ``images``, (B, C, H, W) in [-1, 1], to the reference if ``real``, else to the generated pictures."""
        features = self.extractor(images).double()
        if real:
            self.real_count += len(features)
            self.real_sum += features.sum(0)
            self.real_outer += features.T @ features
        else:
            self.generated_count += len(features)
            self.generated_sum += features.sum(0)
            self.generated_outer += features.T @ features
            self._evaluated = None

    def forward(self, images: Tensor, real: bool) -> None:
        """Update only: the value of one batch, which torchmetrics would compute here, has no meaning."""
        self.update(images, real)

    def compute(self) -> Tensor:
        """Return the distance, a float64 scalar; under DDP every rank must call this.

        Raises:
            UserError: a side has fewer than two pictures.
        """
        real = _moments("real", self.real_count, self.real_sum, self.real_outer)
        generated = _moments("generated", self.generated_count, self.generated_sum, self.generated_outer)
        self._evaluated = int(self.generated_count)
        return torch.tensor(frechet_distance(*real, *generated), dtype=torch.float64, device=self.real_sum.device)

    def reset(self) -> None:
        """Forget the pictures, but with ``keep_reference`` only the generated ones."""
        reference = {name: getattr(self, name) for name in ("real_count", "real_sum", "real_outer")}
        super().reset()
        self._evaluated = None
        if self.keep_reference:
            for name, value in reference.items():
                setattr(self, name, value)

    @property
    def label(self) -> str:
        """``fid@N`` for Inception features, else ``fd_NAME@N``; N is the number of generated pictures.

        Below :data:`FEW` it ends with :data:`TOO_FEW`: it then tells the number of pictures rather than the model.
        After :meth:`compute` N counts the pictures of all ranks, before it only those of this one.
        """
        count = int(self.generated_count) if self._evaluated is None else self._evaluated
        name = "fid" if self.extractor.name == "inception" else f"fd_{self.extractor.name}"
        return f"{name}@{count}{TOO_FEW if count < FEW else ''}"


def _moments(side: str, count: Tensor, total: Tensor, outer: Tensor) -> tuple[Tensor, Tensor]:
    """Mean (D,) and unbiased covariance (D, D) from the sums of one side."""
    if count < 2:
        raise UserError(f"the Fréchet distance needs at least 2 {side} pictures, got {int(count)}; add more of them")
    mean = total / count
    return mean, (outer - count * mean.outer(mean)) / (count - 1)
