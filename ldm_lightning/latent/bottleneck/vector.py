r"""Vector quantization with a book of moving averages (van den Oord, Vinyals & Kavukcuoglu 2017, appendix A.1).

Each place takes the nearest vector of the book. The book is not trained by gradients but follows the features that
chose it: with :math:`n_k` of them in a step, whose sum is :math:`s_k`,

.. math:: N_k \leftarrow \gamma N_k + (1 - \gamma) n_k, \quad m_k \leftarrow \gamma m_k + (1 - \gamma) s_k, \quad
          e_k = m_k / N_k,

and the encoder is held to it by the commitment loss :math:`|f - \mathrm{sg}(e)|^2`. Two things keep the book alive,
both by features of the current step, drawn at random: the first step fills it with them (the usual start of k-means),
and every ``restart_every`` steps they replace *dead* codes, those used less than ``dead`` times as often as if all were
used alike (Dhariwal et al. 2020). A book that was trained before is not filled anew: at the first step its averages are
weighed by the size of that step, and it goes on no faster than by the set decay.

Counts and sums run over all ranks and accumulated batches, and which features are drawn depends on (seed, step, sample)
alone: however a batch is split, the book is the same.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ldm_lightning.errors import UserError
from ldm_lightning.latent.bottleneck.base import Bottleneck
from ldm_lightning.latent.bottleneck.nearest import nearest_codes
from ldm_lightning.latent.posterior import PointPosterior, Posterior
from ldm_lightning.latent.scale import CodeScale, LatentScale
from ldm_lightning.loss import Term
from ldm_lightning.ranks import are_several, sum_over_ranks
from ldm_lightning.rng import Streams

__all__ = ["VectorQuantizer"]


class VectorQuantizer(Bottleneck):
    """The nearest of ``codes`` vectors at every place.

    Args:
        latent_channels: length of a vector.
        codes: size K of the book.
        commitment_weight: beta, of the commitment loss, a mean over latent elements.
        decay: gamma of the averages, in [0, 1).
        restart_every: optimizer steps between revivals of dead codes.
        dead: share of the uniform frequency 1 / K below which a code is dead; 0 revives none.

    Raises:
        UserError: a number is out of range.
    """

    book: Tensor
    counts: Tensor
    sums: Tensor

    def __init__(
        self,
        latent_channels: int,
        codes: int,
        *,
        commitment_weight: float = 0.25,
        decay: float = 0.99,
        restart_every: int = 100,
        dead: float = 0.03,
    ) -> None:
        super().__init__(latent_channels, latent_channels, groups=1, codes=codes)
        if codes < 2 or commitment_weight < 0 or not 0 <= decay < 1 or restart_every < 1 or not 0 <= dead < 1:
            raise UserError(
                f"bottleneck: codes={codes} must be at least 2, commitment_weight={commitment_weight} at least 0, "
                f"decay={decay} and dead={dead} in [0, 1), restart_every={restart_every} at least 1"
            )
        self.commitment_weight = commitment_weight
        self.decay = decay
        self.restart_every = restart_every
        self.dead = dead
        self.register_buffer("book", torch.randn(codes, latent_channels))
        self.register_buffer("counts", torch.zeros(codes))
        self.register_buffer("sums", torch.zeros(codes, latent_channels))
        # What this rank has seen since the last optimizer step. No buffers: DDP would overwrite them by rank 0's.
        self._seen: Tensor | None = None  # (K, 1 + C) float64: counts and sums
        self._keys: list[Tensor] = []
        self._candidates: list[Tensor] = []

    def forward(self, features: Tensor) -> PointPosterior:
        """The nearest vectors of the book."""
        codes, numbers = nearest_codes(features, self.book)
        commitment = (features - codes.detach()).square().mean()
        return PointPosterior(
            features,
            codes,
            nats=math.log(self.codes) / self.latent_channels,
            code_numbers=numbers[:, None],
            extra={"commitment": Term(commitment, self.commitment_weight)},
        )

    @torch.no_grad()
    def observe(self, posterior: Posterior, streams: Streams, step: int) -> None:
        """Count and sum the features of each code."""
        assert isinstance(posterior, PointPosterior)
        assert posterior.code_numbers is not None
        rows = posterior.features.detach().movedim(1, -1).flatten(1, -2)  # (B, places, C)
        flat = rows.flatten(0, 1)
        # In float64, the order of a sum over millions of float32 hardly shows.
        seen = torch.cat([torch.ones_like(flat[:, :1]), flat], 1).double()
        if self._seen is None:
            self._seen = seen.new_zeros(self.codes, seen.shape[1])
        self._seen.index_add_(0, posterior.code_numbers.flatten(), seen)
        if self._renews(step):
            coarse, fine = streams.uniform("codes", (2, rows.shape[1])).double().unbind(1)
            keys = (coarse + fine * 2.0**-24).flatten()  # 48 bits: hardly ever two alike
            self._keep_best(keys, flat)

    def _renews(self, step: int) -> bool:
        return step == 0 or (self.dead > 0 and step % self.restart_every == 0)

    def _keep_best(self, keys: Tensor, candidates: Tensor) -> None:
        """Of all candidates so far those with the highest keys, at most one a code."""
        self._keys.append(keys)
        self._candidates.append(candidates)
        keys, candidates = torch.cat(self._keys), torch.cat(self._candidates)
        best = keys.topk(min(self.codes, len(keys))).indices
        self._keys, self._candidates = [keys[best]], [candidates[best]]

    @torch.no_grad()
    def advance(self, step: int) -> None:
        """Move the averages on, and fill or revive the book where it is time."""
        if self._seen is None:
            return
        seen, self._seen = self._seen, None
        empty = step == 0 and not self.counts.any()  # unless it was trained before
        keys, self._keys = self._keys, []
        candidates, self._candidates = self._candidates, []
        seen = sum_over_ranks(seen)
        if keys and are_several():
            keys, candidates = _gather(keys[0], self.codes), _gather(candidates[0], self.codes)
        finite = seen.isfinite().all()  # a diverged step must not spoil the book
        seen = torch.where(finite, seen, 0.0)
        counts, sums, weight = seen[:, 0].float(), seen[:, 1:].float(), (1 - self.decay) * finite.float()
        if step == 0 and not empty and finite:
            self._weigh_anew(counts)
        self.counts.lerp_(counts, weight)
        self.sums.lerp_(sums, weight)
        used = self.counts > 1e-12
        self.book.copy_(torch.where(used[:, None], self.sums / self.counts.clamp(min=1e-12)[:, None], self.book))
        if keys:
            all_keys, fresh = torch.cat(keys), torch.cat(candidates)
            self._renew(fresh[all_keys.argsort(descending=True, stable=True)], counts.sum(), everything=empty)

    def _weigh_anew(self, counts: Tensor) -> None:
        """Weigh a book that was trained before as if all steps had been like this one, of ``counts`` (K,).

        Those steps may have been of another size, and an imported book does not say how often its codes were used. Each
        counts for at least its use in this step, so that none moves faster than the decay.
        """
        self.counts.copy_(torch.maximum(self.counts * counts.sum() / self.counts.sum(), counts))
        self.sums.copy_(self.counts[:, None] * self.book)

    def _renew(self, fresh: Tensor, seen: Tensor, everything: bool) -> None:
        """Put vectors ``fresh`` (n, C) in the place of dead codes, with the weight of an average code."""
        fresh = fresh[fresh.isfinite().all(1)]
        if everything:
            dead = torch.ones_like(self.counts, dtype=torch.bool)
        else:
            dead = self.counts < self.dead * self.counts.mean()
        places = dead.nonzero()[: len(fresh), 0]
        weight = (seen if everything else self.counts.sum()) / self.codes
        self.book[places] = fresh[: len(places)]
        self.counts[places] = weight
        self.sums[places] = weight * fresh[: len(places)]

    def unpack(self, packed: Tensor) -> PointPosterior:
        """From codes, which half precision may have moved."""
        codes = self.snap(packed.float())
        return PointPosterior(codes, codes)

    def scale(self, statistics: Mapping[str, Any]) -> CodeScale:
        """Standardized by the measured mean and deviation of each channel."""
        return CodeScale(LatentScale.measured(statistics), self.snap)

    def snap(self, latents: Tensor) -> Tensor:
        """The nearest vectors of latents (B, C, *space)."""
        return nearest_codes(latents, self.book)[0]


def _gather(own: Tensor, most: int) -> list[Tensor]:
    """``own`` (n, ...) of every rank, of which ranks may hold different numbers, at most ``most``."""
    size = torch.tensor(len(own), device=own.device)
    sizes = [torch.zeros_like(size) for _ in range(torch.distributed.get_world_size())]
    torch.distributed.all_gather(sizes, size)
    padded = own.new_zeros(most, *own.shape[1:])
    padded[: len(own)] = own
    parts = [torch.zeros_like(padded) for _ in sizes]
    torch.distributed.all_gather(parts, padded)
    return [part[: int(n)] for part, n in zip(parts, sizes, strict=True)]
