from __future__ import annotations

from itertools import chain

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ldm_lightning.data.order import EpochBatches, EvaluationBatches
from ldm_lightning.data.philox import generator, permutation
from ldm_lightning.errors import UserError

counts = st.integers(1, 60)
worlds = st.sampled_from([1, 2, 3, 4])


def epochs(batches: EpochBatches, count: int) -> list[list[list[tuple[int, int]]]]:
    return [list(batches) for _ in range(count)]


def test_first_order_is_fixed_for_ever():
    # A change here would break the resuming of every saved run.
    assert permutation(8, seed=0, purpose="order").tolist() == [7, 1, 5, 3, 6, 0, 4, 2]
    assert permutation(8, seed=0, purpose="order", epoch=1).tolist() == [7, 2, 1, 0, 3, 4, 6, 5]


def test_generators_differ_in_every_argument():
    keys = [(0, "a", 0, 0), (1, "a", 0, 0), (0, "b", 0, 0), (0, "a", 1, 0), (0, "a", 0, 1), (-1, "a", 0, 0)]
    draws = [generator(*key).random() for key in keys]
    assert len(set(draws)) == len(keys)
    assert draws == [generator(*key).random() for key in keys]


@given(counts, st.integers(1, 8), worlds, st.integers(0, 3))
def test_ranks_share_each_global_batch(count, per_rank, world, seed):
    indices, size = np.arange(100, 100 + count), per_rank * world
    if count < size:
        return
    alone = epochs(EpochBatches(indices, size, seed=seed), 2)
    shares = [epochs(EpochBatches(indices, size, rank, world, seed=seed), 2) for rank in range(world)]
    for epoch in range(2):
        assert len(alone[epoch]) == count // size
        for k, batch in enumerate(alone[epoch]):
            assert all(len(share[epoch][k]) == per_rank for share in shares)
            interleaved = chain.from_iterable(zip(*(share[epoch][k] for share in shares), strict=True))
            assert list(interleaved) == batch


@given(counts, st.integers(1, 8), st.integers(0, 5))
def test_an_epoch_visits_samples_once(count, size, seed):
    if count < size:
        return
    indices = np.arange(count) * 7
    for epoch, batches in enumerate(epochs(EpochBatches(indices, size, seed=seed), 3)):
        keys = list(chain.from_iterable(batches))
        assert {e for e, _ in keys} == {epoch}
        visited = [index for _, index in keys]
        assert len(set(visited)) == len(visited) == count // size * size
        assert set(visited) <= set(indices.tolist())


def test_epochs_and_seeds_have_different_orders():
    first, second = epochs(EpochBatches(np.arange(50), 5), 2)
    other = next(iter(epochs(EpochBatches(np.arange(50), 5, seed=1), 1)))
    strip = lambda batches: [index for batch in batches for _, index in batch]  # noqa: E731
    assert strip(first) != strip(second)
    assert strip(first) != strip(other)
    assert strip(first) != list(range(50))


def test_global_order_does_not_depend_on_the_batch_size():
    for size in (5, 10, 25):
        keys = list(chain.from_iterable(EpochBatches(np.arange(50), size)))
        assert keys == list(chain.from_iterable(EpochBatches(np.arange(50), 1)))


@given(st.integers(0, 3), st.integers(0, 4))
def test_resuming_continues_the_same_order(epoch, start):
    whole = epochs(EpochBatches(np.arange(23), 4), epoch + 2)
    resumed = EpochBatches(np.arange(23), 4, epoch=epoch, start=start)
    assert len(resumed) == 5  # of a full epoch: Lightning counts the batches already done itself
    assert epochs(resumed, 2) == [whole[epoch][start:], whole[epoch + 1]]


def test_unused_iterators_move_nothing_and_broken_off_ones_are_left():
    whole = epochs(EpochBatches(np.arange(12), 4), 3)
    batches = EpochBatches(np.arange(12), 4)
    unused = iter(batches)
    iter(batches)
    assert (batches.epoch, batches.begun) == (0, False)
    running = iter(batches)
    assert [next(running) for _ in range(3)] == whole[0]  # all of it, but StopIteration was never asked for
    iter(batches)
    assert batches.epoch == 0
    running = iter(batches)
    assert next(running) == whole[1][0]  # broken off after one batch
    assert list(unused) == whole[2]  # an old iterator starts when it is first used
    assert batches.epoch == 2


@pytest.mark.parametrize("size", [0, -2, 5])
def test_batch_that_does_not_divide(size):
    for make in (EpochBatches, EvaluationBatches):
        with pytest.raises(UserError, match=f"batch_size={size} must be a positive multiple of the 2"):
            make(np.arange(40), size, 0, 2)


def test_batch_larger_than_the_data():
    with pytest.raises(UserError, match=r"data.batch_size=64 but only 12 training pictures: set data.batch_size<=12"):
        EpochBatches(np.arange(12), 64)


@given(counts, st.integers(1, 8), worlds)
def test_evaluation_sees_every_sample_once(count, per_rank, world):
    if count < world:
        return
    indices = np.arange(count) * 3
    shares = [EvaluationBatches(indices, per_rank * world, rank, world) for rank in range(world)]
    batches = [list(share) for share in shares]
    assert len({len(share) for share in batches}) == 1  # or collectives would wait for ever
    assert [len(share) for share in shares] == [len(share) for share in batches]
    seen = [key for share in batches for batch in share for key in batch]
    assert sorted(seen) == [(0, index) for index in indices.tolist()]
    assert all(1 <= len(batch) <= per_rank + (world > 1) for share in batches for batch in share)


def test_evaluation_keeps_order_and_the_partial_batch():
    batches = EvaluationBatches(np.array([5, 3, 9, 1, 7]), 2)
    expected = [[(0, 5), (0, 3)], [(0, 9), (0, 1)], [(0, 7)]]
    assert list(batches) == expected == list(batches)


def test_more_ranks_than_samples():
    with pytest.raises(UserError, match="only 3 pictures to evaluate for 4 processes"):
        EvaluationBatches(np.arange(3), 4, 0, 4)
