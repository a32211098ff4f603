"""First-stage losses: every term has a name, a value and a weight, and the loss is their weighted sum."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from ldm_lightning.errors import UserError
from ldm_lightning.latent.posterior import Posterior
from ldm_lightning.loss import Term

__all__ = ["ReconstructionLoss"]


@dataclass(frozen=True)
class ReconstructionLoss:
    """Distances between picture and reconstruction, the posterior's weighted KL, and terms that its family brings.

    All are means, over pixels and over latent elements, so that a weight keeps its meaning when the resolution or the
    down-sampling factor changes (a KL summed over elements, as in Rombach et al. 2022, does not).

    Attributes:
        distance: (reconstruction, picture) -> scalar mean over pixels, such as ``torch.nn.L1Loss()``.
        kl_weight: weight of the KL in nats per latent element; where codes are deterministic that is a constant.
        free_nats: KL per latent element that costs nothing (the free bits of Kingma et al. 2016, here for each picture,
            which does not depend on the batch).
        perceptual: a second distance, such as LPIPS.
        perceptual_weight: its weight.
    """

    distance: Callable[[Tensor, Tensor], Tensor]
    kl_weight: float = 1e-4
    free_nats: float = 0.0
    perceptual: Callable[[Tensor, Tensor], Tensor] | None = None
    perceptual_weight: float = 1.0

    def __post_init__(self) -> None:
        if self.kl_weight < 0 or self.free_nats < 0 or self.perceptual_weight <= 0:
            raise UserError(
                f"first_stage.loss: kl_weight={self.kl_weight} and free_nats={self.free_nats} must not be below 0, "
                f"perceptual_weight={self.perceptual_weight} must be above 0"
            )

    def __call__(self, x: Tensor, reconstruction: Tensor, posterior: Posterior) -> dict[str, Term]:
        """Terms "reconstruction", "kl", "perceptual" and the posterior's own, for pictures (B, C, H, W)."""
        terms = {
            "reconstruction": Term(self.distance(reconstruction, x), 1.0),
            "kl": Term(posterior.kl().clamp(min=self.free_nats).mean(), self.kl_weight),
            **posterior.terms(),
        }
        if self.perceptual is not None:
            terms["perceptual"] = Term(self.perceptual(reconstruction, x), self.perceptual_weight)
        return terms
