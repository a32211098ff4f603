"""Does a classifier read generated pictures as the class that was asked for?

A distance of distributions does not see whether the condition is obeyed. :func:`fit_judge` trains a small classifier,
the :class:`Judge`, on real pictures in seconds; :class:`ClassAccuracy` lets it read the generated ones (the
"classification accuracy score" of Ravuri & Vinyals 2019 with the roles exchanged). The judge's own accuracy on unseen
real pictures is the ceiling of the figure: report both. Its penultimate features also serve Fréchet distances on
domains far from ImageNet: :class:`JudgeExtractor`.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchmetrics import Metric

from ldm_lightning.errors import UserError
from ldm_lightning.metrics.extractor import Extractor

__all__ = ["ClassAccuracy", "Judge", "JudgeExtractor", "fit_judge"]

_ROTATION, _SCALE, _SHIFT = 0.2, 0.1, 0.07  # largest augmentation: radians, relative, fraction of the side


class Judge(nn.Module):
    """A small convolutional classifier for small pictures.

    Args:
        channels: C of the pictures.
        num_classes: number of classes K.
        width: channels of the first layer; the cost grows with its square.
    """

    feature_dim = 128

    def __init__(self, channels: int, num_classes: int, width: int = 16) -> None:
        super().__init__()
        self.channels = channels
        self.num_classes = num_classes
        self.stem = nn.Sequential(
            *_convolution(channels, width, stride=2),
            *_convolution(width, 2 * width, stride=1),
            *_convolution(2 * width, 2 * width, stride=2),
            *_convolution(2 * width, 4 * width, stride=2),
            nn.AdaptiveAvgPool2d(4),
            nn.Flatten(),
            nn.Linear(4 * width * 4 * 4, self.feature_dim),
            nn.ReLU(),
        )
        self.head = nn.Linear(self.feature_dim, num_classes)

    def features(self, images: Tensor) -> Tensor:
        """(B, C, H, W) in [-1, 1], at least 16 pixels a side -> (B, 128) penultimate features."""
        features: Tensor = self.stem(images)
        return features

    def forward(self, images: Tensor) -> Tensor:
        """(B, C, H, W) in [-1, 1] -> (B, K) logits."""
        logits: Tensor = self.head(self.features(images))
        return logits


def _convolution(inputs: int, outputs: int, *, stride: int) -> tuple[nn.Module, ...]:
    return nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU()


def fit_judge(
    images: Tensor,
    labels: Tensor,
    num_classes: int,
    *,
    seed: int,
    epochs: int = 30,
    batch_size: int = 32,
    learning_rate: float = 3e-3,
    progress: Callable[[int, int, float], object] | None = None,
) -> Judge:
    """Train a judge on real pictures: AdamW, one-cycle learning rate, random rotations, scales and shifts.

    The result depends on the arguments only; the global random state is neither used nor changed.

    Args:
        images: (N, C, H, W) floating point in [-1, 1], at least 16 pixels a side; training runs on their device.
        labels: (N,) int64 in [0, num_classes).
        num_classes: number of classes K.
        seed: seed of weights, order and augmentation.
        epochs: passes over the pictures.
        batch_size: pictures a step.
        learning_rate: largest learning rate of the cycle.
        progress: called after every epoch with (epochs done, epochs in all, mean loss).

    Returns:
        The judge in eval mode, without gradients.

    Raises:
        UserError: the pictures or labels are not of this kind.
    """
    _check(images, labels, num_classes)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        judge = Judge(images.shape[1], num_classes).to(images.device)
    generator = torch.Generator().manual_seed(seed)
    # Batch normalization cannot learn from a remainder of one picture: the last, short batch of a pass is left out.
    steps = max(len(images) // batch_size, 1)
    optimizer = torch.optim.AdamW(judge.parameters(), lr=learning_rate, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, learning_rate, total_steps=epochs * steps)
    with torch.enable_grad():
        for epoch in range(epochs):
            order = torch.randperm(len(images), generator=generator).to(images.device)
            losses = torch.zeros((), device=images.device)
            for chosen in order.split(batch_size)[:steps]:
                logits = judge(_augment(images[chosen], generator))
                loss = F.cross_entropy(logits, labels[chosen].to(images.device), label_smoothing=0.1)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                schedule.step()
                losses += loss.detach()
            if progress is not None:
                progress(epoch + 1, epochs, losses.item() / steps)
    return judge.eval().requires_grad_(False)


def _check(images: Tensor, labels: Tensor, num_classes: int) -> None:
    if images.ndim != 4 or min(images.shape[2:]) < 16 or not images.is_floating_point():
        raise UserError(
            f"the judge got images of shape {tuple(images.shape)} and type {images.dtype}; "
            "give floating point (N, C, H, W) in [-1, 1], at least 16 pixels a side"
        )
    if len(images) < 2 or labels.shape != images.shape[:1]:
        raise UserError(
            f"the judge got {len(images)} images and labels of shape {tuple(labels.shape)}; "
            "give at least 2 images and one label for each"
        )
    _check_labels(labels, num_classes)


def _check_labels(labels: Tensor, num_classes: int) -> None:
    if labels.min() < 0 or labels.max() >= num_classes:
        raise UserError(
            f"labels run from {int(labels.min())} to {int(labels.max())}, but the judge knows {num_classes} classes; "
            "give labels from 0 and raise num_classes if there are more"
        )


def _augment(images: Tensor, generator: torch.Generator) -> Tensor:
    """Rotate, scale and shift each picture of (B, C, H, W) at random; the border is continued outwards."""
    # Drawn on the CPU, so that every device sees the same pictures.
    angle, scale, x, y = (2 * torch.rand(4, len(images), generator=generator) - 1).to(images.device)
    cosine = (1 + _SCALE * scale) * (_ROTATION * angle).cos()
    sine = (1 + _SCALE * scale) * (_ROTATION * angle).sin()
    # Grid coordinates run from -1 to 1: a shift of the whole side is 2.
    rows = [torch.stack([cosine, -sine, 2 * _SHIFT * x], -1), torch.stack([sine, cosine, 2 * _SHIFT * y], -1)]
    grid = F.affine_grid(torch.stack(rows, 1).to(images.dtype), list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, padding_mode="border", align_corners=False)


class ClassAccuracy(Metric):
    """Fraction of generated pictures that the judge reads as the class asked for.

    Attributes:
        confusion: (K, K) int64 state: row = class asked for, column = class read.

    Args:
        judge: a trained classifier.
    """

    is_differentiable = False
    higher_is_better = True
    full_state_update = False
    confusion: Tensor

    def __init__(self, judge: Judge) -> None:
        super().__init__()
        self.judge = judge.requires_grad_(False)
        zeros = torch.zeros(judge.num_classes, judge.num_classes, dtype=torch.int64)
        self.add_state("confusion", zeros, dist_reduce_fx="sum")

    @torch.no_grad()
    def update(self, images: Tensor, labels: Tensor) -> None:
        """Add a batch.

        Args:
            images: (B, C, H, W) generated pictures in [-1, 1].
            labels: (B,) int64, the classes asked for, in [0, K).

        Raises:
            UserError: a label is not a class of the judge.
        """
        _check_labels(labels, self.judge.num_classes)
        self.judge.eval()  # a surrounding module's train() reaches the judge, too
        with torch.autocast(images.device.type, enabled=False):
            read = self.judge(images.float()).argmax(1)
        classes = self.judge.num_classes
        self.confusion += torch.bincount(labels * classes + read, minlength=classes**2).view(classes, classes)

    def compute(self) -> dict[str, Tensor]:
        """Return ``accuracy``, a scalar over all pictures, and ``per_class``, (K,), NaN for classes never asked for.

        Raises:
            UserError: no picture was given.
        """
        asked = self.confusion.sum(1)
        if not asked.any():
            raise UserError("the class accuracy of no pictures is undefined; call update with generated pictures first")
        right = self.confusion.diagonal()
        return {"accuracy": right.sum() / asked.sum(), "per_class": right / asked}


class JudgeExtractor(Extractor):
    """The 128 penultimate features of a judge.

    Figures of different judges are not comparable: rename the extractor after its training data and seed.

    Args:
        judge: a trained classifier.
        name: goes into the labels of the figures.
    """

    def __init__(self, judge: Judge, name: str = "judge") -> None:
        super().__init__(name, judge.feature_dim, judge)

    def features(self, images: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, 128)."""
        features: Tensor = self.network.features(images)
        return features
