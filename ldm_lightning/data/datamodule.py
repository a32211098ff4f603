"""The one LightningDataModule: a source, a transform, and everything about splits, batches, ranks and resuming.

A run that was killed goes on with the very next batch. For this, two integers are saved: the epoch, and how many of its
batches training has finished. They are taken from the trainer's progress, not from the sampler, which with worker
processes is ahead of training by the batches prefetched.
"""

from __future__ import annotations

import math
import warnings
from hashlib import blake2b

import numpy as np
import pytorch_lightning as pl
import torch

from ldm_lightning.data.batch import Batch
from ldm_lightning.data.dataset import MakeDataset, PictureDataset, collate, encode_caption
from ldm_lightning.data.level_table import check_levels
from ldm_lightning.data.loader import Loader
from ldm_lightning.data.order import EpochBatches, EvaluationBatches
from ldm_lightning.data.philox import permutation
from ldm_lightning.data.picture import ImageTransform
from ldm_lightning.data.source import Measured, Source
from ldm_lightning.data.split import SPLITS, check_fractions, split, working_shares
from ldm_lightning.errors import UserError, nearest

__all__ = ["DataModule"]


class DataModule(pl.LightningDataModule):
    """Batches of a source for training, validation and testing.

    It also serves without a trainer; then there is one rank. The source is prepared at first need.

    Args:
        source: the pictures.
        transform: picture -> (C, H, W) tensor in [-1, 1].
        batch_size: samples of a global batch, over all ranks together; the same for training and evaluation.
        num_workers: worker processes of each loader and rank.
        validation: share of the pictures for validation, chosen by content (see `ldm_lightning.data.split`).
        test: share of the pictures for testing.
        caption_length: captions are encoded as this many bytes.
        seed: of the training order and the augmentation. Splits do not depend on it.
        pin_memory: use page-locked memory; None for where there is a GPU.
        dataset: of a trainer's batches: pictures, or their cached latents (`ldm_lightning.data.latents`).

    Raises:
        UserError: the fractions are no partition, or numbers are out of range.
    """

    def __init__(
        self,
        source: Source,
        transform: ImageTransform,
        batch_size: int = 64,
        num_workers: int = 0,
        *,
        validation: float = 0.05,
        test: float = 0.0,
        caption_length: int = 64,
        seed: int = 0,
        pin_memory: bool | None = None,
        dataset: MakeDataset = PictureDataset,
    ) -> None:
        super().__init__()
        check_fractions(validation, test)
        for name, value, least in (("num_workers", num_workers, 0), ("caption_length", caption_length, 1)):
            if value < least:
                raise UserError(f"data.{name}={value} must be at least {least}")
        self.source, self.transform = source, transform
        self.batch_size, self.num_workers = batch_size, num_workers
        self.validation, self.test = validation, test
        self.caption_length, self.seed = caption_length, seed
        self.pin_memory = torch.cuda.is_available() if pin_memory is None else pin_memory
        self.dataset = dataset
        self._splits: dict[str, np.ndarray] = {}
        self._order: EpochBatches | None = None
        self._restored: dict[str, int] | None = None

    def prepare_data(self) -> None:
        """Download and scan; the results are cached."""
        self.setup()

    def setup(self, stage: str | None = None) -> None:
        """Prepare the source and split it; a second call does nothing.

        Raises:
            UserError: the source's data are missing or unusable, or hold numbers of no agreed range and none is set.
        """
        if not self._splits:
            self.source.prepare(self.transform.min_size)
            if isinstance(self.source, Measured) and self.transform.percentile is None:
                check_levels(self.source.levels, self.source.name, self.transform.limits)
            keys = map(self.source.split_key, range(len(self.source)))
            self._splits = split(keys, self.validation, self.test)
            self._warn_of_cut_captions()

    def _warn_of_cut_captions(self) -> None:
        texts = (text for i in range(len(self.source)) for text in self.source.captions(i))
        lengths = np.array([len(text.encode()) for text in texts], dtype=np.int64)
        cut = int((lengths > self.caption_length).sum())
        if cut:
            warnings.warn(
                f"{cut} of {len(lengths)} captions ({cut / len(lengths):.1%}) are longer than data.caption_length="
                f"{self.caption_length} bytes and are cut: data.caption_length={lengths.max()} would fit all, "
                f"{math.ceil(np.quantile(lengths, 0.99))} all but a hundredth",
                stacklevel=2,
            )

    def check_trainable(self) -> None:
        """Check that every split a training needs holds pictures, and the training split a whole batch.

        Raises:
            UserError: it does not; the message names settings that work together.
        """
        self.setup()
        train, validation = len(self._splits["train"]), len(self._splits["validation"])
        if validation and train >= self.batch_size:
            return
        cause = (
            f"of {len(self.source)} pictures, {train} are to train on in batches of data.batch_size={self.batch_size} "
            f"and {validation} to validate with"
        )
        mend = ""
        if not (train and validation):
            keys = [self.source.split_key(i) for i in range(len(self.source))]
            shares = working_shares(keys, self.test)
            if shares is None:
                raise UserError(f"{cause}: give more different pictures")
            mend = f"data.validation={shares[0]:g} data.test={shares[1]:g} "
            train = len(split(keys, *shares)["train"])
        raise UserError(f"{cause}: set {mend}data.batch_size={min(self.batch_size, train)}")

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W) of a sample."""
        return self.transform.channels, self.transform.size, self.transform.size

    @property
    def class_names(self) -> tuple[str, ...]:
        """Names of the classes, by label; empty when unlabelled."""
        self.setup()
        return self.source.class_names

    @property
    def num_classes(self) -> int:
        """Number of classes; 0 when unlabelled."""
        return len(self.class_names)

    @property
    def has_captions(self) -> bool:
        """Whether batches carry the condition ``caption``."""
        return self.source.has_captions

    @property
    def sizes(self) -> dict[str, int]:
        """Number of pictures in each split."""
        self.setup()
        return {name: len(indices) for name, indices in self._splits.items()}

    @property
    def fingerprint(self) -> str:
        """Hex digest of what defines the data: pictures, labels and captions in order, transform, split fractions."""
        self.setup()
        digest = blake2b(repr((self.transform, self.validation, self.test)).encode(), digest_size=16)
        for i in range(len(self.source)):
            digest.update(self.source.content_hash(i))
            digest.update(repr((self.source.label(i), self._caption_fact(i))).encode())
        return digest.hexdigest()

    def _caption_fact(self, i: int) -> str | tuple[str, ...] | None:
        """What the fingerprint says of captions; one caption counts as it did when there could be but one."""
        texts = self.source.captions(i)
        if len(texts) > 1:
            return texts
        return "".join(texts) if self.source.has_captions else None

    @property
    def contents(self) -> str:
        """Hex digest of the set of pictures alone."""
        self.setup()
        hashes = sorted(map(self.source.content_hash, range(len(self.source))))
        return blake2b(b"".join(hashes), digest_size=16).hexdigest()

    @property
    def _rank_and_world(self) -> tuple[int, int]:
        return (self.trainer.global_rank, self.trainer.world_size) if self.trainer else (0, 1)

    def _loader(
        self, make: MakeDataset, batches: EpochBatches | EvaluationBatches, augment_seed: int | None = None
    ) -> Loader:
        dataset = make(self.source, self.transform, self.caption_length, augment_seed)
        return Loader(dataset, batches, self.num_workers, self.pin_memory)

    def _evaluation(self, make: MakeDataset, indices: np.ndarray) -> Loader:
        return self._loader(make, EvaluationBatches(indices, self.batch_size, *self._rank_and_world))

    def train_dataloader(self) -> Loader:
        """The endless training order with augmentation, from where a restored run stopped.

        It belongs to the trainer, whose progress `state_dict` relates to it; anyone else calls `loader`.

        Raises:
            UserError: there are fewer training pictures than a batch holds, or it does not divide among the ranks.
        """
        self.setup()
        place = self._restored or {"epoch": self.trainer.current_epoch if self.trainer else 0, "batches": 0}
        self._restored = None
        self._order = EpochBatches(
            self._splits["train"],
            self.batch_size,
            *self._rank_and_world,
            seed=self.seed,
            epoch=place["epoch"],
            start=place["batches"],
        )
        return self._loader(self.dataset, self._order, augment_seed=self.seed)

    def val_dataloader(self) -> Loader:
        """The whole validation split, each sample exactly once over all ranks."""
        return self._evaluation(self.dataset, self._chosen("validation"))

    def test_dataloader(self) -> Loader:
        """The whole test split, likewise."""
        return self._evaluation(self.dataset, self._chosen("test"))

    def loader(self, split: str, limit: int | None = None, shuffle_seed: int | None = None) -> Loader:
        """Pictures of a split, each exactly once over all ranks, with the deterministic transform.

        Args:
            split: ``"train"``, ``"validation"`` or ``"test"``.
            limit: at most this many samples; None for all.
            shuffle_seed: samples are drawn and ordered at random from this seed; None spreads them evenly over the
                split, in its order.

        Raises:
            UserError: there is no such split, it is empty, or it has fewer samples than there are ranks.
        """
        return self._evaluation(PictureDataset, self._chosen(split, limit, shuffle_seed))

    def _chosen(self, split: str, limit: int | None = None, shuffle_seed: int | None = None) -> np.ndarray:
        """Indices of the samples that :meth:`loader` describes."""
        if split not in SPLITS:
            raise UserError(f"'{split}' is none of the splits {', '.join(SPLITS)}{nearest(split, SPLITS)}")
        self.setup()
        indices = self._splits[split]
        if not len(indices):
            mend = "a smaller data.validation or data.test" if split == "train" else f"a larger data.{split}"
            raise UserError(f"the {split} split of {len(self.source)} pictures is empty: set {mend}")
        if shuffle_seed is not None:
            indices = indices[permutation(len(indices), shuffle_seed, "subset")]
        if limit is not None and limit < len(indices):
            if limit < 1:
                raise UserError(f"a limit of {limit} samples leaves nothing of the {split} split: set at least 1")
            indices = indices[np.arange(limit) * len(indices) // limit]
        return indices

    def pictures(self, split: str, limit: int | None = None, shuffle_seed: int | None = None) -> Batch:
        """Pictures of a split as one batch, the same on every rank; arguments and errors as in :meth:`loader`."""
        return collate(
            list(
                map(
                    PictureDataset(self.source, self.transform, self.caption_length).__getitem__,
                    [(0, int(index)) for index in self._chosen(split, limit, shuffle_seed)],
                )
            )
        )

    def stream(
        self, split: str, start: int, stop: int, *, batch_size: int, limit: int | None = None, shuffle_seed: int
    ) -> Loader:
        """The same pictures as ``pictures(split, limit, shuffle_seed)[start:stop]``, a batch at a time, on every rank.

        Args:
            split: ``"train"``, ``"validation"`` or ``"test"``.
            start: the first of them.
            stop: the one behind the last.
            batch_size: pictures at once.
            limit: as in :meth:`loader`.
            shuffle_seed: as in :meth:`loader`.
        """
        indices = self._chosen(split, limit, shuffle_seed)[start:stop]
        return self._loader(PictureDataset, EvaluationBatches(indices, batch_size))

    def conditions(self, n: int) -> dict[str, torch.Tensor]:
        """Conditions for ``n`` samples to look at: the classes in turn, or the captions of validation pictures in turn.

        Args:
            n: number of samples.

        Returns:
            Tensors by name, first dimension n; empty when there is nothing to condition on.
        """
        turn = torch.arange(n)
        conditions = {}
        if self.num_classes:
            conditions["class"] = turn % self.num_classes
        if self.has_captions:
            indices = self._splits["validation"]
            texts = ["".join(self.source.captions(int(index))[:1]) for index in indices[:n]]
            encoded = torch.stack([encode_caption(text, self.caption_length) for text in texts])
            conditions["caption"] = encoded[turn % len(texts)]
        return conditions

    def state_dict(self) -> dict[str, int]:
        """Return ``epoch`` and ``batches``: training has finished that many batches of that epoch, and all before."""
        order = self._order
        if order is None:
            return self._restored or {"epoch": 0, "batches": 0}
        if not order.begun or self.trainer is None:
            return {"epoch": order.epoch, "batches": order.start}
        batches = self.trainer.fit_loop.epoch_loop.batch_progress.current.processed  # type: ignore[attr-defined]
        if batches >= self.trainer.num_training_batches:
            return {"epoch": order.epoch + 1, "batches": 0}
        return {"epoch": order.epoch, "batches": batches}

    def load_state_dict(self, state_dict: dict[str, int]) -> None:
        """Let the next `train_dataloader` go on from a place that `state_dict` returned."""
        self._restored = {"epoch": int(state_dict["epoch"]), "batches": int(state_dict["batches"])}
        self._order = None
        # Lightning cannot know that the data module finds the place again, and warns in the middle of an epoch.
        warnings.filterwarnings("ignore", message=".*your dataloader is not resumable.*")
