"""First-stage losses: every term has a name, a value and a weight, and the loss is their weighted sum."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from ldm_lightning.latent.posterior import Posterior
from ldm_lightning.latent.term import Term, total

__all__ = ["ReconstructionLoss", "Term", "total"]


@dataclass(frozen=True)
class ReconstructionLoss:
    """Distance between picture and reconstruction, the weighted KL of the posterior, and terms that its family brings.

    All are means, over pixels and over latent elements, so that a weight keeps its meaning when the resolution or the
    down-sampling factor changes (a KL summed over elements, as in Rombach et al. 2022, does not).

    Attributes:
        distance: (reconstruction, picture) -> scalar mean over pixels, such as ``torch.nn.L1Loss()``.
        kl_weight: weight of the KL in nats per latent element; where codes are deterministic that is a constant.
    """

    distance: Callable[[Tensor, Tensor], Tensor]
    kl_weight: float = 1e-4

    def __call__(self, x: Tensor, reconstruction: Tensor, posterior: Posterior) -> dict[str, Term]:
        """Terms "reconstruction", "kl" and the posterior's own, for pictures and reconstructions (B, C, H, W)."""
        return {
            "reconstruction": Term(self.distance(reconstruction, x), 1.0),
            "kl": Term(posterior.kl().mean(), self.kl_weight),
            **posterior.terms(),
        }
