"""How close a reconstruction comes to its original: PSNR, SSIM and mean absolute error.

Every figure is a mean over pictures of a figure per picture. For PSNR this matters: the PSNR of the pooled squared
error, which is also in use, is lower, since the worst pictures dominate it. Sums are kept in float64, so batch split
and number of ranks do not matter. The formulas are those of torchmetrics.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torchmetrics import Metric, MetricCollection
from torchmetrics.functional.image import peak_signal_noise_ratio, structural_similarity_index_measure

from ldm_lightning.errors import UserError

__all__ = ["PictureMean", "reconstruction_metrics"]


class PictureMean(Metric):
    """Mean over pictures of a score of (reconstruction, original).

    Args:
        score: takes two tensors (B, C, H, W) clamped to [-1, 1] and returns (B,).
    """

    is_differentiable = False
    full_state_update = False
    total: Tensor
    count: Tensor

    def __init__(self, score: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.score = score
        self.add_state("total", torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("count", torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, reconstruction: Tensor, original: Tensor) -> None:
        """Add a batch; both (B, C, H, W), values outside [-1, 1] are clamped as a saved picture would be."""
        if reconstruction.shape != original.shape:
            raise UserError(
                f"reconstruction {tuple(reconstruction.shape)} and original {tuple(original.shape)} differ in shape; "
                "compare pictures of one size"
            )
        self.total += self.score(reconstruction.float().clamp(-1, 1), original.float().clamp(-1, 1)).double().sum()
        self.count += len(original)

    def compute(self) -> Tensor:
        """Return the mean, a float64 scalar; NaN before the first picture."""
        return self.total / self.count


def _psnr(reconstruction: Tensor, original: Tensor) -> Tensor:
    """(B,) decibels for a data range of 2; infinite where the two are equal."""
    return peak_signal_noise_ratio(reconstruction, original, data_range=2.0, dim=(1, 2, 3), reduction="none")


def _ssim(reconstruction: Tensor, original: Tensor) -> Tensor:
    """(B,) at most 1, over an 11 x 11 Gaussian window (Wang et al. 2004)."""
    # SSIM compares local means by their ratio, so its zero must be black: measure in [0, 1].
    pair = ((reconstruction + 1) / 2, (original + 1) / 2)
    similarity = structural_similarity_index_measure(*pair, data_range=1.0, reduction="none")
    assert isinstance(similarity, Tensor)  # a tuple only when the full map is asked for
    return similarity


def _l1(reconstruction: Tensor, original: Tensor) -> Tensor:
    """(B,) mean absolute error in [0, 2]."""
    return (reconstruction - original).abs().mean((1, 2, 3))


def reconstruction_metrics() -> MetricCollection:
    """Return the metrics ``psnr`` (dB), ``ssim`` and ``l1``, each updated with (reconstruction, original).

    Pictures are (B, C, H, W) in [-1, 1], at least 6 pixels a side; PSNR is averaged over pictures.
    """
    # Compute groups would merge metrics whose states happen to agree on the first batch.
    scores: dict[str, Metric | MetricCollection] = {
        name: PictureMean(score) for name, score in (("psnr", _psnr), ("ssim", _ssim), ("l1", _l1))
    }
    return MetricCollection(scores, compute_groups=False)
