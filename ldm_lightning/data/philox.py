"""Stateless random numbers for the data side: a generator is a pure function of (seed, purpose, epoch, index).

The bit generator is numpy's Philox4x64 (Salmon et al. 2011), whose stream numpy promises never to change. The key is
(seed, purpose), the counter starts at (0, index, epoch, 0): streams of different samples or epochs cannot overlap,
since one stream would have to be 2**64 blocks long to reach the next.

It is not the generator of `ldm_lightning.rng`, Philox4x32, which is made of tensor operations to draw a batch where its
latents lie; here a sample draws at a time, as many numbers as it likes, in a worker process.
"""

from __future__ import annotations

import zlib

import numpy as np

__all__ = ["first_uniforms", "first_words", "generator", "permutation"]

_MASK = 2**64 - 1
_MULTIPLIERS = (0xD2E7470EE14C6C93, 0xCA5A826395121157)
_WEYL = (0x9E3779B97F4A7C15, 0xBB67AE8584CAA73B)
_ROUNDS = 10
_BLOCK = 1 << 14  # samples at once: their words stay in the processor's cache


def generator(seed: int, purpose: str, epoch: int = 0, index: int = 0) -> np.random.Generator:
    """Return the generator of one sample in one epoch; the same arguments always give the same numbers."""
    key = np.array([seed & _MASK, zlib.crc32(purpose.encode())], dtype=np.uint64)
    counter = np.array([0, index, epoch, 0], dtype=np.uint64)
    return np.random.Generator(np.random.Philox(key=key, counter=counter))


def permutation(count: int, seed: int, purpose: str, epoch: int = 0) -> np.ndarray:
    """Return a (count,) int64 permutation: the order that sorts ``count`` random words.

    Sorting raw words, where ``Generator.permutation`` would do, keeps the order independent of numpy's version.
    """
    words = np.asarray(generator(seed, purpose, epoch).bit_generator.random_raw(count))
    return np.argsort(words, kind="stable")


def first_words(seed: int, purpose: str, epoch: int, index: np.ndarray) -> np.ndarray:
    """Return the (N, 4) uint64 words that the generators of the samples ``index`` (N,) would each begin with.

    A million generators take seconds to make; this is the same function evaluated for all samples at once.
    """
    blocks = [index[start : start + _BLOCK] for start in range(0, len(index), _BLOCK)]
    return np.concatenate([_words(seed, purpose, epoch, block) for block in blocks] or [np.empty((0, 4), np.uint64)])


def first_uniforms(seed: int, purpose: str, epoch: int, index: np.ndarray) -> np.ndarray:
    """Return the (N, 4) float64 numbers in [0, 1) that ``random()`` of these generators would each begin with."""
    return (first_words(seed, purpose, epoch, index) >> np.uint64(11)) * 2.0**-53


def _words(seed: int, purpose: str, epoch: int, index: np.ndarray) -> np.ndarray:
    # numpy counts up before each block, so the first one is number 1.
    c0, c1, c2, c3 = (np.broadcast_to(np.asarray(word, np.uint64), index.shape) for word in (1, index, epoch, 0))
    key = (seed & _MASK, zlib.crc32(purpose.encode()))
    for number in range(_ROUNDS):
        k0, k1 = (np.uint64((word + number * weyl) & _MASK) for word, weyl in zip(key, _WEYL, strict=True))
        high0, low0 = _multiply(c0, _MULTIPLIERS[0])
        high1, low1 = _multiply(c2, _MULTIPLIERS[1])
        c0, c1, c2, c3 = high1 ^ c1 ^ k0, low1, high0 ^ c3 ^ k1, low0
    return np.stack([c0, c1, c2, c3], axis=1)


def _multiply(words: np.ndarray, factor: int) -> tuple[np.ndarray, np.ndarray]:
    """High and low 64 bits of the products, by halves of 32 bits: numpy has no wider integers."""
    half, mask = np.uint64(32), np.uint64(0xFFFFFFFF)
    f1, f0 = np.uint64(factor >> 32), np.uint64(factor & 0xFFFFFFFF)
    w1, w0 = words >> half, words & mask
    low, cross = w0 * f0, w1 * f0
    middle = w0 * f1 + (cross & mask) + (low >> half)
    return w1 * f1 + (cross >> half) + (middle >> half), words * np.uint64(factor)
