"""Which pictures train and which only judge: decided by content, not by position.

A picture's key (`Source.split_key`, the hash of its content unless several pictures belong together) is hashed to a
number u in [0, 1), and u decides the split:

    u < test -> "test",   u < test + validation -> "validation",   otherwise -> "train"

So duplicates always fall on the same side, renaming, reordering or adding files moves no other picture across, and no
seed or list has to be kept. Two runs that use the same fractions share their test set. Fractions are met on average:
of N distinct pictures the share deviates by about sqrt(f (1 - f) / N).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from hashlib import blake2b

import numpy as np

from ldm_lightning.errors import UserError

__all__ = ["SPLITS", "check_fractions", "split", "split_of", "working_shares"]

SPLITS = ("train", "validation", "test")


def check_fractions(validation: float, test: float) -> None:
    """Check the shares of the data kept from training.

    Raises:
        UserError: a fraction is negative, or nothing is left to train on.
    """
    if validation < 0 or test < 0 or not validation + test < 1:
        raise UserError(f"data.validation={validation} and data.test={test} must be at least 0 and sum to less than 1")


def split_of(key: bytes, validation: float, test: float) -> str:
    """Return the name of the split that a picture belongs to."""
    u = int.from_bytes(blake2b(key).digest()[:8], "big") / 2**64
    if u < test:
        return "test"
    return "validation" if u < test + validation else "train"


def split(keys: Iterable[bytes], validation: float, test: float) -> dict[str, np.ndarray]:
    """Return, for each split, the int64 positions of its pictures in ascending order.

    Raises:
        UserError: see `check_fractions`.
    """
    check_fractions(validation, test)
    names = np.array([split_of(key, validation, test) for key in keys], dtype=object)
    return {name: np.flatnonzero(names == name) for name in SPLITS}


def working_shares(keys: Sequence[bytes], test: float) -> tuple[float, float] | None:
    """Shares for validation (the smallest, in hundredths) and testing that leave pictures to train and validate with.

    ``test`` stays as it is, unless only without test pictures enough are left. None when nothing helps.
    """
    for share in (test, 0.0):
        for percent in range(1, math.ceil(100 * (1 - share))):
            parts = split(keys, percent / 100, share)
            if len(parts["train"]) and len(parts["validation"]):
                return percent / 100, share
    return None
