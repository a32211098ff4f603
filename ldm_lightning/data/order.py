"""In which order, and in which batches, samples are visited.

Both classes are batch samplers for ``DataLoader(dataset, batch_sampler=...)``. They yield lists of keys
(epoch, index). ``batch_size`` counts the samples of a *global* batch, over all ranks together: with G samples a batch
and W ranks, batch k of epoch e is ``permutation[e][k G : (k + 1) G]``, and rank r takes every W-th of it from r on. The
global batch, hence the gradient, is the same for every number of ranks, and any place in training can be found again
from two integers.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from ldm_lightning.data.philox import permutation
from ldm_lightning.errors import UserError

__all__ = ["EpochBatches", "EvaluationBatches"]


def _per_rank(batch_size: int, world_size: int) -> int:
    """Samples of a global batch that fall to each rank."""
    if batch_size < 1 or batch_size % world_size:
        raise UserError(f"data.batch_size={batch_size} must be a positive multiple of the {world_size} processes")
    return batch_size // world_size


class EpochBatches:
    """Training: endless epochs, each in its own order; the last partial batch of an epoch is dropped.

    Each iteration runs one epoch, and begins with its first ``next``: an iterator that is made but never used moves
    nothing, and one that is left before its end is not missed. Lightning does both.

    Args:
        indices: (N,) indices of the samples, in the source's order.
        batch_size: samples of a global batch, a multiple of ``world_size``.
        rank: which of the ``world_size`` shares to yield.
        world_size: number of processes.
        seed: the order of epoch e is a function of (seed, e) alone.
        epoch: the epoch of the first iteration.
        start: the batch that the first iteration starts with.

    Attributes:
        epoch: the epoch being run, or about to be run when nothing has ``begun``.
        begun: whether a first batch has been asked for.

    Raises:
        UserError: the batch does not divide among the ranks, or is larger than the data.
    """

    def __init__(
        self,
        indices: np.ndarray | Sequence[int],
        batch_size: int,
        rank: int = 0,
        world_size: int = 1,
        *,
        seed: int = 0,
        epoch: int = 0,
        start: int = 0,
    ) -> None:
        _per_rank(batch_size, world_size)
        if len(indices) < batch_size:
            raise UserError(
                f"data.batch_size={batch_size} but only {len(indices)} training pictures: "
                f"set data.batch_size<={len(indices)}"
            )
        self.indices, self.batch_size = np.asarray(indices), batch_size
        self.rank, self.world_size, self.seed = rank, world_size, seed
        self.epoch, self.start, self.begun = epoch, start, False

    def __len__(self) -> int:
        """Full batches of an epoch."""
        return len(self.indices) // self.batch_size

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        # A generator: nothing below runs before the first batch is asked for.
        if self.begun:
            self.epoch, self.start = self.epoch + 1, 0
        self.begun = True
        epoch = self.epoch
        order = self.indices[permutation(len(self.indices), self.seed, "order", epoch)]
        for k in range(self.start, len(self)):
            batch = order[k * self.batch_size : (k + 1) * self.batch_size]
            yield [(epoch, int(index)) for index in batch[self.rank :: self.world_size]]


class EvaluationBatches:
    """Evaluation: every sample exactly once over all ranks, in order, as epoch 0.

    Rank r takes every ``world_size``-th sample from r on. There is no padding and no duplicate, yet every rank makes
    the same number of batches, so that collective operations inside a batch cannot wait for ever: a rank with one
    sample more than others puts it into its last batch.

    Args:
        indices: (N,) indices of the samples.
        batch_size: samples of a global batch, a multiple of ``world_size``.
        rank: which of the ``world_size`` shares to yield.
        world_size: number of processes.

    Raises:
        UserError: the batch does not divide among the ranks, or a rank would get no sample.
    """

    def __init__(
        self, indices: np.ndarray | Sequence[int], batch_size: int, rank: int = 0, world_size: int = 1
    ) -> None:
        if len(indices) < world_size:
            raise UserError(
                f"only {len(indices)} pictures to evaluate for {world_size} processes: "
                "use fewer processes or a larger data.validation or data.test"
            )
        self.batch_size = _per_rank(batch_size, world_size)
        self.share = np.asarray(indices)[rank::world_size]
        self.count = -(-(len(indices) // world_size) // self.batch_size)

    def __len__(self) -> int:
        """Batches of each rank."""
        return self.count

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        for k in range(self.count):
            end = (k + 1) * self.batch_size if k < self.count - 1 else len(self.share)
            yield [(0, int(index)) for index in self.share[k * self.batch_size : end]]
