r"""Binary spherical quantization (Zhao, Xiong & Krähenbühl 2024).

The feature vector at a place is put on the unit sphere, :math:`u = v / |v|`, and each of its d entries rounded to
:math:`\pm 1 / \sqrt d`, so that codes lie on the sphere, too: the error is bounded, and no commitment loss is needed.
What keeps codes in use is an entropy loss of the soft assignment

.. math:: q(c | u) \propto e^{\tau c \cdot u} = \prod_i \sigma(2 \tau c_i u_i),

which should be certain for each place and uniform over all of them. Both entropies are those of single bits: for the
first that is exact, for the second it is the paper's approximation, an upper bound.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import normalize

from ldm_lightning.errors import UserError
from ldm_lightning.latent.bottleneck.base import Bottleneck
from ldm_lightning.latent.codes import bits_per_group, number_bits
from ldm_lightning.latent.posterior import PointPosterior
from ldm_lightning.latent.scale import BitScale
from ldm_lightning.loss import Term
from ldm_lightning.ranks import mean_over_ranks

__all__ = ["BinarySpherical"]


class BinarySpherical(Bottleneck):
    r"""d bits at every place, as :math:`\pm 1 / \sqrt d`.

    Args:
        latent_channels: d.
        inverse_temperature: tau of the soft assignment.
        entropy_weight: of the mean entropy of an assignment, in nats per bit; small means certain.
        diversity_weight: of log 2 minus the entropy of the mean assignment, in nats per bit; small means that both
            values of a bit are equally frequent.

    Raises:
        UserError: a number is out of range.
    """

    def __init__(
        self,
        latent_channels: int,
        inverse_temperature: float = 10.0,
        entropy_weight: float = 0.1,
        diversity_weight: float = 0.1,
    ) -> None:
        size = bits_per_group(max(1, latent_channels))
        super().__init__(latent_channels, latent_channels, groups=latent_channels // size, codes=2**size)
        if inverse_temperature <= 0 or entropy_weight < 0 or diversity_weight < 0:
            raise UserError(
                f"bottleneck: inverse_temperature={inverse_temperature} must be above 0, "
                f"entropy_weight={entropy_weight} and diversity_weight={diversity_weight} not below"
            )
        self.inverse_temperature = inverse_temperature
        self.entropy_weight = entropy_weight
        self.diversity_weight = diversity_weight

    @property
    def _size(self) -> float:
        """The absolute value of a bit."""
        return 1 / math.sqrt(self.latent_channels)

    def forward(self, features: Tensor) -> PointPosterior:
        """Round the directions of the feature vectors."""
        u = normalize(features, dim=1)
        bits = u > 0
        entropy, diversity = self.entropies(u)
        return PointPosterior(
            features=u,
            codes=torch.where(bits, self._size, -self._size).to(u.dtype),
            nats=math.log(2),
            code_numbers=number_bits(bits),
            extra={
                "entropy": Term(entropy, self.entropy_weight),
                "diversity": Term(math.log(2) - diversity, self.diversity_weight),
            },
        )

    def entropies(self, u: Tensor) -> tuple[Tensor, Tensor]:
        """Mean entropy of the assignment, and entropy of the mean one, in nats per bit, for u (B, d, *space).

        In training, the mean runs over all ranks.
        """
        probability = torch.sigmoid(2 * self.inverse_temperature * self._size * u)
        own = probability.transpose(0, 1).flatten(1).mean(1)
        return _entropy(probability).mean(), _entropy(_over_ranks(own) if self.training else own).mean()

    def unpack(self, packed: Tensor) -> PointPosterior:
        """From codes, which half precision may have moved."""
        codes = torch.where(packed > 0, self._size, -self._size)
        return PointPosterior(codes, codes)

    def scale(self, statistics: Mapping[str, Any]) -> BitScale:
        """Bits stay bits, however often each is on."""
        return BitScale(-self._size, self._size)


def _entropy(probability: Tensor) -> Tensor:
    """Of a coin, in nats; its gradient is finite also where the coin is certain."""
    inner = probability.clamp(1e-7, 1 - 1e-7)
    return -(inner * inner.log() + (1 - inner) * torch.log1p(-inner))


def _over_ranks(own: Tensor) -> Tensor:
    """The mean over ranks; its gradient reaches this rank's part, so that DDP's mean of gradients is the whole one."""
    return mean_over_ranks(own) + (own - own.detach())
