"""Philox's published answers, the two distributions, independence, and blindness to batch, order and global state."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from ldm_lightning import rng
from ldm_lightning.rng import Streams, philox

N = 20_000
WORDS = st.integers(0, 2**32 - 1)


def streams(seed: int = 0, count: int = N, epoch: int = 0, start: int = 0) -> Streams:
    return Streams(seed, torch.arange(start, start + count), epoch)


def correlation(a: torch.Tensor, b: torch.Tensor) -> float:
    """Pearson correlation in units of its own standard error."""
    return float(torch.corrcoef(torch.stack([a.flatten(), b.flatten()]).double())[0, 1]) * math.sqrt(a.numel())


# --- Philox ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("counter", "key", "answer"),
    [
        ("00000000 00000000 00000000 00000000", "00000000 00000000", "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
        ("ffffffff ffffffff ffffffff ffffffff", "ffffffff ffffffff", "408f276d 41c83b0e a20bc7c6 6d5451fd"),
        ("243f6a88 85a308d3 13198a2e 03707344", "a4093822 299f31d0", "d16cfe09 94fdcceb 5001e420 24126ea1"),
    ],
)
def test_philox_known_answers(counter, key, answer):
    counter, key, answer = ([int(word, 16) for word in text.split()] for text in (counter, key, answer))
    assert [int(word) for word in philox(tuple(torch.tensor(word) for word in counter), tuple(key))] == answer


def philox_in_python(counter, key):
    (c0, c1, c2, c3), (k0, k1) = counter, key
    for _ in range(10):
        p0, p1 = c0 * 0xD2511F53, c2 * 0xCD9E8D57
        c0, c1, c2, c3 = (p1 >> 32) ^ c1 ^ k0, p1 % 2**32, (p0 >> 32) ^ c3 ^ k1, p0 % 2**32
        k0, k1 = (k0 + 0x9E3779B9) % 2**32, (k1 + 0xBB67AE85) % 2**32
    return [c0, c1, c2, c3]


@settings(deadline=None)
@given(st.tuples(WORDS, WORDS, WORDS, WORDS), st.tuples(WORDS, WORDS))
def test_philox_equals_unbounded_integer_arithmetic(counter, key):
    words = philox(tuple(torch.tensor(word) for word in counter), key)
    assert [int(word) for word in words] == philox_in_python(counter, key)


# --- distributions ---------------------------------------------------------------------------------------------------


def test_uniform_is_uniform_on_a_24_bit_grid_below_one():
    u = streams().uniform("time", (6,))
    assert u.dtype == torch.float32
    assert u.shape == (N, 6)
    assert torch.equal((u.double() * 2**24) % 1, torch.zeros(N, 6).double())
    for dimension in u.T:
        assert stats.kstest(dimension.numpy(), "uniform").pvalue > 1e-3


def test_normal_is_normal_in_every_dimension():
    x = streams().normal("noise", (7,))
    assert x.dtype == torch.float32
    for dimension in x.T:
        assert stats.kstest(dimension.numpy(), "norm").pvalue > 1e-3


def test_normal_tails_have_the_right_weight():
    x = streams(count=100_000).normal("noise", (10,)).flatten()
    for bound in (2, 3, 4):
        share = 2 * stats.norm.sf(bound)
        count = int((x.abs() > bound).sum())
        assert abs(count - share * len(x)) < 4 * math.sqrt(share * len(x))


@pytest.mark.parametrize("word", [0, 2**32 - 1])
def test_extreme_words_stay_in_range(word, monkeypatch):
    monkeypatch.setattr(rng, "_philox", lambda counter, keys: (torch.full((1, 3, 1), word),) * 4)
    assert torch.equal(streams(count=3).uniform("x", (4,)), torch.full((3, 4), (word >> 8) / 2**24))
    assert streams(count=3).uniform("x", (4,)).max() < 1
    assert streams(count=3).normal("x", (4,)).abs().max() < 7


# --- independence ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("power", [1, 2])
@pytest.mark.parametrize("draw", ["uniform", "normal"])
def test_dimensions_are_uncorrelated_in_value_and_in_size(draw, power):
    x = getattr(streams(), draw)("noise", (9,)).double() ** power  # 9 words: three counter blocks, one cut
    off_diagonal = torch.corrcoef(x.T) - torch.eye(9)
    assert off_diagonal.abs().max() < 5 / math.sqrt(N)


OTHERS = {
    "neighbouring sample": streams(start=1),
    "sample 2^32 further": streams(start=2**32),
    "next epoch": streams(epoch=1),
    "next seed": streams(seed=1),
    "negative seed": streams(seed=-1),
    "seed 2^32 further": streams(seed=2**32),
    "seed near 2^63": streams(seed=2**63 - 1),
}


@pytest.mark.parametrize("name", OTHERS)
def test_streams_are_independent(name):
    one, other = streams().normal("noise", (4,)), OTHERS[name].normal("noise", (4,))
    assert not (one == other).any(1).any()
    assert abs(correlation(one, other)) < 4
    assert abs(correlation(one**2, other**2)) < 4


def test_all_the_other_streams_differ_from_each_other():
    draws = {tuple(stream.uniform("noise", (4,))[0].tolist()) for stream in OTHERS.values()}
    assert len(draws) == len(OTHERS)


def test_purposes_are_independent():
    assert abs(correlation(streams().normal("noise", (4,)), streams().normal("posterior", (4,)))) < 4
    assert abs(correlation(streams().uniform("time"), streams().uniform("drop"))) < 4


def test_purposes_in_use_never_collide():
    purposes = ["noise", "time", "drop", "posterior", *(f"sampler/{step}" for step in range(500))]
    draws = {tuple(streams(count=1).uniform(purpose, (4,))[0].tolist()) for purpose in purposes}
    assert len(draws) == len(purposes)


# --- a pure function of (seed, purpose, epoch, index) ----------------------------------------------------------------


@pytest.mark.parametrize("shape", [(), (1,), (3,), (4, 5, 5), (4, 16, 16)])
@pytest.mark.parametrize("draw", ["uniform", "normal"])
def test_a_sample_does_not_depend_on_its_batch(draw, shape):
    index = torch.tensor([7, 0, 2**40 + 3, 12345, 2**32, 1, 99, *range(200, 260)])

    def numbers(part: torch.Tensor) -> torch.Tensor:
        return getattr(Streams(-5, part, epoch=3), draw)("noise", shape)

    whole = numbers(index)
    assert whole.shape == (len(index), *shape)
    assert torch.equal(whole, torch.cat([numbers(part) for part in index.split([1, 2, 33, 31])]))
    order = torch.randperm(len(index))
    assert torch.equal(whole[order], numbers(index[order]))


def test_the_same_draw_twice_is_the_same():
    assert torch.equal(streams().normal("noise", (3,)), streams().normal("noise", (3,)))


def test_narrow_indices_give_the_same_numbers():
    index = torch.arange(10)
    assert torch.equal(Streams(0, index.int()).normal("noise", (3,)), Streams(0, index).normal("noise", (3,)))


def test_an_empty_batch_is_an_empty_draw():
    assert streams(count=0).normal("noise", (4, 2)).shape == (0, 4, 2)


def test_global_random_state_is_neither_read_nor_changed():
    torch.manual_seed(0)
    before = torch.get_rng_state()
    one = streams().normal("noise", (4,))
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(1)
    assert torch.equal(streams().normal("noise", (4,)), one)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_integers_agree_across_devices_and_normals_to_rounding():
    on_gpu = Streams(3, torch.arange(1000, device="cuda"), epoch=2)
    on_cpu = Streams(3, torch.arange(1000), epoch=2)
    assert torch.equal(on_gpu.uniform("time", (64,)).cpu(), on_cpu.uniform("time", (64,)))
    torch.testing.assert_close(on_gpu.normal("noise", (64,)).cpu(), on_cpu.normal("noise", (64,)), rtol=0, atol=1e-5)


@pytest.mark.parametrize("shape", [(), (3,), (4, 8, 8)], ids=str)
def test_draws_for_several_purposes_are_those_for_each(shape):
    """To the bit."""
    purposes = ["sampler/0", "sampler/17", "bound/3"]
    drawn = Streams(5, torch.arange(7) * 7919, epoch=2)
    for purpose, numbers in zip(purposes, drawn.normals(purposes, shape), strict=True):
        assert torch.equal(drawn.normal(purpose, shape), numbers)
