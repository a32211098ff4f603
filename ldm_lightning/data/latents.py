"""Cached latents: the source of a second stage whose first stage has already seen every picture.

A cache (made by ``ldm encode``, laid out in `ldm_lightning.data.latent_files`) is a `Source` like any other: it knows
labels, captions, hashes and split keys of all samples by their global index, so the splits, the order and the
fingerprint are those of the pictures. What it adds is the posterior of every picture: not one draw from it, which would
be the same in every epoch, but the tensors a draw needs, *packed* by the posterior itself (mean and standard deviation
of a Gaussian). The noise of a draw is a function of (seed, epoch, index) as in live training, and a picture that is
mirrored there has the posterior of its mirror image here, so the two see the same latents.

Pictures themselves are still had, for comparisons with samples, from the source that the cache was made of.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ldm_lightning.data.batch import Batch
from ldm_lightning.data.dataset import AUGMENTATION, drawn_captions, encode_caption
from ldm_lightning.data.latent_files import Manifest, Shards, read_manifest, read_samples, read_texts, verify
from ldm_lightning.data.philox import first_uniforms
from ldm_lightning.data.picture import ImageTransform, Picture
from ldm_lightning.data.source import Source
from ldm_lightning.errors import UserError

__all__ = ["LatentCache", "LatentDataset"]


class LatentCache:
    """The samples of a latent cache.

    Args:
        root: the cache's folder.
        pictures: what it was made of; None if pictures are never asked for.
    """

    def __init__(self, root: str, pictures: Source | None = None) -> None:
        self.root, self.pictures = Path(root), pictures
        self.class_names: tuple[str, ...] = ()
        self.has_captions = False
        self._manifest: Manifest | None = None
        self._min_size = 1
        self._found = False

    @property
    def name(self) -> str:
        """The folder's own name."""
        return self.root.name

    def prepare(self, min_size: int = 1) -> None:
        """Read the cache and verify every byte of it.

        Raises:
            UserError: there is no cache, or it is incomplete or damaged.
        """
        if self._manifest is not None:
            return
        manifest = read_manifest(self.root)
        verify(self.root, manifest)
        samples = read_samples(self.root, manifest)
        self._hashes, self._labels = samples["hash"], samples.get("label")
        self._split_keys = samples.get("split_key", self._hashes)
        self._texts = read_texts(samples)
        self.class_names, self.has_captions = manifest.class_names, self._texts is not None
        self._min_size, self._manifest = min_size, manifest
        self.shards = Shards(self.root, manifest)

    def __len__(self) -> int:
        return 0 if self._manifest is None else self._manifest.count

    def label(self, i: int) -> int | None:
        """Position of the picture's class in `class_names`; None when unlabelled."""
        return None if self._labels is None else int(self._labels[i])

    def labels(self) -> Tensor | None:
        """(N,) int64, all labels; None when unlabelled."""
        return None if self._labels is None else torch.from_numpy(self._labels)

    def captions(self, i: int) -> tuple[str, ...]:
        """Texts of the picture; empty when it has none."""
        return () if self._texts is None else self._texts[i]

    def content_hash(self, i: int) -> bytes:
        """16 bytes of BLAKE2b, as of the picture."""
        return bytes(self._hashes[i])

    def split_key(self, i: int) -> bytes:
        """As of the picture."""
        return bytes(self._split_keys[i])

    def picture(self, i: int) -> Picture:
        """Picture ``i`` itself, from where the cache was made of.

        Raises:
            UserError: it is not there any more, or has changed.
        """
        if not self._found:
            self._find()
        assert self.pictures is not None
        return self.pictures.picture(i)

    def _find(self) -> None:
        needed = f"real pictures are needed here, and {self.root} holds only their latents"
        mend = "give their place by data.pictures=FOLDER"
        if self.pictures is None:
            raise UserError(f"{needed}: {mend}")
        try:
            self.pictures.prepare(self._min_size)
        except UserError as error:
            raise UserError(f"{needed}: {mend} ({error})") from error
        count = len(self.pictures)
        if count != len(self) or any(self.pictures.content_hash(i) != self.content_hash(i) for i in range(count)):
            raise UserError(f"{needed}, but '{self.pictures.name}' no longer holds what it was made of: restore it")
        self._found = True


class LatentDataset:
    """Batches of packed posteriors from a prepared cache, fetched by keys (epoch, index), all of a batch at once.

    Args:
        source: the prepared cache.
        transform: of the pictures; tells whether training mirrors them.
        caption_length: length of the encoded captions in bytes.
        augment_seed: what the mirroring is drawn from; None for none.

    Raises:
        UserError: the cache was made with another transform.
    """

    def __init__(
        self, source: LatentCache, transform: ImageTransform, caption_length: int = 64, augment_seed: int | None = None
    ) -> None:
        self.shards, self.count = source.shards, len(source)
        if repr(transform) != self.shards.manifest.transform:
            raise UserError(
                f"{source.root} was made with {self.shards.manifest.transform}, not with {transform}: encode again"
            )
        self.transform, self.augment_seed = transform, augment_seed if transform.flip else None
        self.caption_seed, self.labels = augment_seed, source.labels()
        self.captions: Tensor | None = None  # (M, length) int16, those of a sample one after the other
        if source.has_captions:
            texts = [source.captions(i) or ("",) for i in range(self.count)]
            self.counts = np.array([len(own) for own in texts], dtype=np.int64)
            self.starts = np.cumsum(self.counts) - self.counts
            self.captions = torch.empty(int(self.counts.sum()), caption_length, dtype=torch.int16)
            for row, text in zip(self.captions, (text for own in texts for text in own), strict=True):
                row.copy_(encode_caption(text, caption_length))
        self._mirrored: tuple[int, np.ndarray] | None = None

    def __len__(self) -> int:
        return self.count

    def __getitems__(self, keys: Sequence[tuple[int, int]]) -> Batch:
        """One batch: ``x`` (B, P, *space), P channels of packed posterior, in the precision of the cache."""
        epoch = keys[0][0]
        index = np.fromiter((index for _, index in keys), dtype=np.int64, count=len(keys))
        view = 0 if self.augment_seed is None else self._mirror(self.augment_seed, epoch)[index]
        x = torch.from_numpy(self.shards.take(index, view))
        chosen = torch.from_numpy(index)
        condition = {} if self.labels is None else {"class": self.labels[chosen]}
        if self.captions is not None:
            drawn = drawn_captions(self.counts[index], self.caption_seed, epoch, index)
            condition["caption"] = self.captions[torch.from_numpy(self.starts[index] + drawn)].long()
        return Batch(x, chosen, condition, epoch)

    def collate(self, batch: Batch) -> Batch:
        """Nothing is left to do."""
        return batch

    def _mirror(self, seed: int, epoch: int) -> np.ndarray:
        """(N,) 0 or 1: which samples `ImageTransform` mirrors in this epoch, found for all of them at once."""
        if self._mirrored is None or self._mirrored[0] != epoch:
            draws = first_uniforms(seed, AUGMENTATION, epoch, np.arange(self.count))
            self._mirrored = epoch, self.transform.mirrors(draws).astype(np.int64)
        return self._mirrored[1]
