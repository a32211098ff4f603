r"""Importance sampling: more often there where the loss is large, and each time counted less for it.

A time law makes times of uniform numbers u. Drawing u from a density g instead, and dividing each loss by it, leaves
the expected loss and its gradient as they are, whatever g:

.. math:: E_{u \sim g} \left[ \frac{L(u)}{g(u)} \right] = \int_0^1 L(u) \, du .

Its variance is least for :math:`g \propto \sqrt{E[L^2 \mid u]}` (Nichol & Dhariwal 2021, section 3.3). So any law can
be sampled like this: with :class:`~ldm_lightning.diffusion.objective.time_law.DiscreteUniform` of T steps and T bins it
is the published p(t).

**State.** The density follows the losses seen so far. An optimizer step of all ranks together makes one update, from
sums over its samples: neither the number of ranks, nor accumulation, nor the order of samples matters, but for the
rounding of sums. The state is kept in buffers, hence in checkpoints.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ldm_lightning.errors import UserError
from ldm_lightning.precision import KeepsPrecision
from ldm_lightning.ranks import sum_over_ranks

__all__ = ["LossSecondMoment"]


class LossSecondMoment(KeepsPrecision):
    """A piecewise constant density of u, in proportion to the root of the mean squared loss in each bin.

    In eval mode u stays uniform and nothing is learned, so that validation losses compare over time.

    Args:
        bins: equal parts of [0, 1).
        memory: losses of which a bin keeps the mean square: each new one takes the place of an average old one. The
            density is uniform until every bin has seen as many.
        uniform_share: of the density, in (0, 1], which is uniform for good; no loss counts more than 1 / uniform_share.

    The published numbers are a bin a time, memory=10 and (in the published code) uniform_share=0.001.

    Raises:
        UserError: a number out of its range.
    """

    second_moment: Tensor
    count: Tensor

    def __init__(self, bins: int = 100, memory: int = 100, uniform_share: float = 0.001) -> None:
        super().__init__()
        if bins < 1 or memory < 1:
            raise UserError(f"objective.importance: bins={bins} and memory={memory} must be at least 1")
        if not 0 < uniform_share <= 1:
            raise UserError(f"objective.importance.uniform_share={uniform_share}: set it above 0 and at most 1")
        self.bins, self.memory, self.uniform_share = bins, memory, uniform_share
        self.register_buffer("second_moment", torch.zeros(bins, dtype=torch.float64))
        self.register_buffer("count", torch.zeros(bins, dtype=torch.float64))
        # Of this rank alone, so no buffer: DDP would overwrite it by the first rank's.
        self._seen: Tensor | None = None

    def density(self) -> Tensor:
        """(bins,) float64, of mean 1."""
        root = self.second_moment.sqrt()
        known = (self.count >= self.memory).all() & (root.sum() > 0)
        learned = (1 - self.uniform_share) * root / root.mean() + self.uniform_share
        return torch.where(known, learned, 1.0)

    def forward(self, uniform: Tensor) -> tuple[Tensor, Tensor]:
        """Move uniform numbers to where the density puts them, by its quantile function.

        Args:
            uniform: (B,) in [0, 1); evenly spread numbers stay evenly spread under the density.

        Returns:
            (B,) moved numbers in [0, 1), and (B,) the weight 1 / density of each.
        """
        if not self.training:
            return uniform, torch.ones_like(uniform)
        density = self.density()
        mass = density / self.bins
        above = mass.cumsum(0)
        place = torch.searchsorted(above, uniform.double(), right=True).clamp(max=self.bins - 1)
        within = ((uniform - above[place]) / mass[place] + 1).clamp(0, 1)
        moved = ((place + within) / self.bins).to(uniform.dtype).clamp(max=1 - 2.0**-24)
        # Of the bin that it lies in once rounded, where it will also be observed.
        return moved, (1 / density[self._bin(moved)]).to(uniform.dtype)

    def _bin(self, moved: Tensor) -> Tensor:
        return (moved * self.bins).long().clamp(max=self.bins - 1)

    @torch.no_grad()
    def observe(self, moved: Tensor, loss: Tensor) -> None:
        """Note the (B,) losses at the moved numbers, before their importance weights; those not finite are left out."""
        if not self.training:
            return
        loss = loss.double()
        hit = self._bin(moved)[:, None] == torch.arange(self.bins, device=moved.device)
        hit &= loss.isfinite()[:, None]
        # Not by index_add, which on a GPU adds in another order each time.
        seen = torch.stack([hit.double().sum(0), torch.where(hit, loss.square()[:, None], 0.0).sum(0)])
        self._seen = seen if self._seen is None else self._seen + seen

    @torch.no_grad()
    def advance(self) -> None:
        """End of an optimizer step: take up what all ranks, which must all call this, have noted since the last."""
        if self._seen is None:
            return
        new, squares = sum_over_ranks(self._seen)
        self._seen = None
        total = self.count + new
        share = (new / total.clamp(1, self.memory)).clamp(max=1)
        self.second_moment.lerp_(squares / new.clamp(min=1), share)
        self.count.copy_(total.clamp(max=self.memory))
