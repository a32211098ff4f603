from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ldm_lightning.data.split import SPLITS, split, split_of
from ldm_lightning.errors import UserError

hashes = st.lists(st.binary(min_size=16, max_size=16), max_size=50)
fractions = st.tuples(st.floats(0, 0.49), st.floats(0, 0.49))


def test_membership_is_fixed_for_ever():
    # First bytes of BLAKE2b(content hash) decide; these must never move, or test pictures leak into training.
    names = [split_of(bytes([i]) * 16, validation=0.3, test=0.3) for i in range(12)]
    assert names == [
        "validation",
        "test",
        "train",
        "test",
        "validation",
        "test",
        "train",
        "validation",
        "train",
        "validation",
        "validation",
        "test",
    ]


@given(hashes, fractions)
def test_splits_partition_the_data_in_order(contents, shares):
    parts = split(contents, *shares)
    assert tuple(parts) == SPLITS
    assert sorted(np.concatenate(list(parts.values())).tolist()) == list(range(len(contents)))
    assert all(np.all(np.diff(indices) > 0) for indices in parts.values())


@given(hashes, fractions, st.randoms())
def test_order_and_company_do_not_matter(contents, shares, random):
    def members(contents):
        return {contents[i]: name for name, indices in split(contents, *shares).items() for i in indices}

    shuffled = contents + contents[:5]  # duplicates too
    random.shuffle(shuffled)
    assert members(shuffled) == members(contents)


@given(st.binary(min_size=16, max_size=16), st.floats(0, 0.4), st.floats(0, 0.4), st.floats(0, 0.1))
def test_a_larger_test_share_only_adds(content, validation, test, more):
    if split_of(content, validation, test) == "test":
        assert split_of(content, validation, test + more) == "test"


def test_shares_are_met():
    parts = split([i.to_bytes(16, "big") for i in range(20_000)], validation=0.1, test=0.3)
    assert len(parts["test"]) / 20_000 == pytest.approx(0.3, abs=0.015)
    assert len(parts["validation"]) / 20_000 == pytest.approx(0.1, abs=0.01)


def test_no_share_no_pictures():
    parts = split([bytes([i]) for i in range(200)], validation=0.0, test=0.0)
    assert [len(parts[name]) for name in SPLITS] == [200, 0, 0]


@pytest.mark.parametrize("shares", [(-0.1, 0), (0, -0.1), (0.5, 0.5), (1.0, 0.0), (float("nan"), 0)])
def test_wrong_fractions(shares):
    with pytest.raises(UserError, match="sum to less than 1"):
        split([], *shares)
