r"""Stateless random numbers: the same sample gets the same noise whatever batch, rank or worker it lands in.

A draw is a pure function of (seed, purpose, epoch, global sample index). No generator is carried along, so
nothing has to be saved to resume, and splitting a batch differently changes no number. The function is Philox4x32-10
(Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3"), a bijection of a 128-bit counter under a 64-bit
key: ten rounds of

.. math:: (L, R) \mapsto (\mathrm{hi}(M L) \oplus k \oplus R, \mathrm{lo}(M L))

here evaluated for a whole batch by integer tensor operations, on whatever device the sample indices live on.
Integers agree bit for bit across devices; normals agree up to the rounding of that device's ``log`` and ``cos``.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

__all__ = ["Streams", "philox"]

_MASK = 0xFFFFFFFF
_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_WEYL = (0x9E3779B9, 0xBB67AE85)  # golden ratio and sqrt(3) - 1: the key schedule
_ROUNDS = 10


def philox(counter: tuple[Tensor, Tensor, Tensor, Tensor], key: tuple[int, int]) -> tuple[Tensor, ...]:
    """Philox4x32-10.

    Args:
        counter: four broadcastable int64 tensors holding 32-bit words.
        key: two 32-bit words.

    Returns:
        Four int64 tensors of independent uniform 32-bit words, of the broadcast shape.
    """
    return tuple(words[0] for words in _philox(counter, (key,)))


def _philox(counter: tuple[Tensor, Tensor, Tensor, Tensor], keys: tuple[tuple[int, int], ...]) -> tuple[Tensor, ...]:
    """The same counter under K keys: four tensors (K, *broadcast shape)."""
    c0, c1, c2, c3 = torch.broadcast_tensors(*counter)
    # Both halves of a round at once: seven operations instead of eighteen matter where each is a kernel launch.
    left, right = torch.stack([c0, c2])[:, None], torch.stack([c1, c3])[:, None]
    multipliers, round_keys = _constants(keys, c0.ndim, c0.device)
    for round_key in round_keys:
        product = (left * multipliers).flip(0)  # modulo 2^64; masking below undoes the sign
        left, right = ((product >> 32) & _MASK) ^ right ^ round_key, product & _MASK
    return left[0], right[0].expand_as(left[0]), left[1], right[1].expand_as(left[1])


@lru_cache(maxsize=256)
def _constants(keys: tuple[tuple[int, int], ...], ndim: int, device: torch.device) -> tuple[Tensor, tuple[Tensor, ...]]:
    """Multipliers and the keys of the rounds, made on the device and kept: copying them there would wait for it."""

    def words(values: Sequence[int]) -> Tensor:
        return torch.stack([torch.full((), value, dtype=torch.int64, device=device) for value in values])

    rounds = torch.arange(_ROUNDS, device=device)[:, None] * words(_WEYL)
    start = torch.stack([words(half) for half in zip(*keys, strict=True)])  # (2, K)
    of_rounds = (rounds[:, :, None] + start) & _MASK
    ones = [1] * ndim
    return words(_MULTIPLIERS).view(2, 1, *ones), of_rounds.view(*of_rounds.shape, *ones).unbind()


@dataclass(frozen=True, eq=False)
class Streams:
    """One independent stream of random numbers for every sample of a batch.

    Attributes:
        seed: the experiment's seed.
        index: (B,) int64, global sample numbers; its device is where the numbers are made.
        epoch: pass over the data; 0 where every pass must see the same numbers (validation, sampling). What is drawn
            for a step and not for a sample counts steps in its place.

    Every draw names its ``purpose`` ("noise", "time", ...): different purposes are independent, the same purpose
    twice gives the same numbers twice.
    """

    seed: int
    index: Tensor
    epoch: int = 0

    def _words(self, purposes: Sequence[str], count: int) -> Tensor:
        """(K, B, count) int64 tensor of uniform 32-bit words, for K purposes."""
        block = torch.arange((count + 3) // 4, dtype=torch.int64, device=self.index.device)
        index = self.index.to(torch.int64)[:, None]
        counter = (block[None], index & _MASK, (index >> 32) & _MASK, torch.full_like(index, self.epoch & _MASK))
        low, high = self.seed & _MASK, (self.seed >> 32) & _MASK
        keys = tuple((low, zlib.crc32(purpose.encode()) ^ high) for purpose in purposes)
        return torch.stack(_philox(counter, keys), dim=-1).flatten(2)[..., :count]

    def uniform(self, purpose: str, shape: Sequence[int] = ()) -> Tensor:
        """(B, *shape) float32 in [0, 1)."""
        # 24 bits fill a float32 mantissa exactly, so 1.0 is never returned.
        words = self._words([purpose], math.prod(shape))[0] >> 8
        return (words.to(torch.float32) * 2.0**-24).view(-1, *shape)

    def normal(self, purpose: str, shape: Sequence[int] = ()) -> Tensor:
        """(B, *shape) float32 standard normals by the Box-Muller transform of pairs of words."""
        return self.normals([purpose], shape)[0]

    def normals(self, purposes: Sequence[str], shape: Sequence[int] = ()) -> Tensor:
        """(K, B, *shape): :meth:`normal` for K purposes at once, where small draws would cost as many launches each."""
        count = math.prod(shape)
        words = self._words(purposes, 2 * ((count + 1) // 2))
        # Half a step away from 0 keeps the logarithm finite; the largest |normal| is 6.7.
        uniform = ((words.to(torch.float64) + 0.5) * 2.0**-32).to(torch.float32)
        first, second = uniform.chunk(2, dim=-1)
        radius, angle = (-2 * first.log()).sqrt(), 2 * math.pi * second
        normals = torch.cat([radius * angle.cos(), radius * angle.sin()], dim=-1)[..., :count]
        return normals.reshape(len(purposes), -1, *shape)
