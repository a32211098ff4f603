"""From a source to batches: a torch ``Dataset`` whose keys are (epoch, index), and its collation.

The key names the epoch because augmentation is drawn from (seed, epoch, index) without any state: the same key gives
the same tensor in every worker, on every rank and after every restart.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from ldm_lightning.data.batch import Batch
from ldm_lightning.data.philox import first_words, generator
from ldm_lightning.data.picture import ImageTransform, Picture
from ldm_lightning.data.source import Source

__all__ = [
    "AUGMENTATION",
    "BatchDataset",
    "MakeDataset",
    "PictureDataset",
    "Sample",
    "collate",
    "drawn_captions",
    "encode_caption",
]

AUGMENTATION = "augmentation"  # the purpose of the generators that augmentation is drawn from
_CAPTIONS = "captions"  # likewise, of which of several captions is drawn


class BatchDataset(Protocol):
    """Samples fetched by (epoch, index), with the function that makes a batch of what a fetch returns."""

    def __len__(self) -> int: ...

    def collate(self, samples: Any) -> Batch:
        """Make a batch of what torch's ``DataLoader`` fetched: a list of samples, or the answer of `__getitems__`."""
        ...


# Called with source, transform, length of captions in bytes, and the seed of the augmentation or None.
MakeDataset = Callable[[Any, ImageTransform, int, int | None], BatchDataset]


@dataclass(frozen=True)
class Sample:
    """One sample: ``x`` (C, H, W), its global index, its conditions by name, and the epoch it was drawn for."""

    x: Tensor
    index: int
    condition: dict[str, Tensor]
    epoch: int


def encode_caption(text: str, length: int) -> Tensor:
    """Return the (length,) int64 UTF-8 bytes of ``text`` plus 1, padded with 0; a long text is cut between letters."""
    tokens = [byte + 1 for byte in text.encode()[:length].decode(errors="ignore").encode()]
    return torch.tensor(tokens + [0] * (length - len(tokens)), dtype=torch.int64)


def drawn_captions(counts: np.ndarray, seed: int | None, epoch: int, index: np.ndarray) -> np.ndarray:
    """Which of its captions each sample has in an epoch: drawn anew from (seed, epoch, index), without any state.

    Args:
        counts: (N,) int64, captions of the samples ``index``, at least 1.
        seed: None for the first.
        epoch: the pass over the data.
        index: (N,) int64, global numbers of the samples.

    Returns:
        (N,) int64 from 0 to below ``counts``.
    """
    if seed is None or (counts == 1).all():
        return np.zeros_like(counts)
    words = first_words(seed, _CAPTIONS, epoch, index)[:, 0]
    return (words % counts.astype(np.uint64)).astype(np.int64)


class PictureDataset(Dataset[Sample]):
    """Transformed samples of a prepared source, fetched by (epoch, index).

    Args:
        source: the prepared source.
        transform: (picture, generator or None) -> tensor.
        caption_length: length of the encoded captions in bytes.
        augment_seed: what training augmentation is drawn from; None for the deterministic transform.
    """

    def __init__(
        self,
        source: Source,
        transform: Callable[[Picture, np.random.Generator | None], Tensor],
        caption_length: int = 64,
        augment_seed: int | None = None,
    ) -> None:
        self.source, self.transform = source, transform
        self.caption_length, self.augment_seed = caption_length, augment_seed

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, key: tuple[int, int]) -> Sample:
        epoch, index = key
        rng = None if self.augment_seed is None else generator(self.augment_seed, AUGMENTATION, epoch, index)
        condition = {}
        if (label := self.source.label(index)) is not None:
            condition["class"] = torch.tensor(label)
        if self.source.has_captions:
            texts = self.source.captions(index) or ("",)
            drawn = drawn_captions(np.array([len(texts)]), self.augment_seed, epoch, np.array([index]))
            condition["caption"] = encode_caption(texts[int(drawn[0])], self.caption_length)
        return Sample(self.transform(self.source.picture(index), rng), index, condition, epoch)

    def collate(self, samples: Sequence[Sample]) -> Batch:
        """See :func:`collate`."""
        return collate(samples)


def collate(samples: Sequence[Sample]) -> Batch:
    """Stack samples of one epoch into a batch: ``x`` (B, C, H, W), ``class`` (B,) and ``caption`` (B, L) int64."""
    return Batch(
        x=torch.stack([sample.x for sample in samples]),
        index=torch.tensor([sample.index for sample in samples]),
        condition={name: torch.stack([sample.condition[name] for sample in samples]) for name in samples[0].condition},
        epoch=samples[0].epoch,
    )
