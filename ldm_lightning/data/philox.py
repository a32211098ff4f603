"""Stateless random numbers for the data side: a generator is a pure function of (seed, purpose, epoch, index).

The bit generator is numpy's Philox4x64 (Salmon et al. 2011), whose stream numpy promises never to change. The key is
(seed, purpose), the counter starts at (0, index, epoch, 0): streams of different samples or epochs cannot overlap,
since one stream would have to be 2**64 blocks long to reach the next.
"""

from __future__ import annotations

import zlib

import numpy as np

__all__ = ["generator", "permutation"]

_MASK = 2**64 - 1


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
