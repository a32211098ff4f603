r"""Terms of the loss: the denoising error, and what may be added to it.

Every term has a name, a value for each sample and a weight in the sum. A term that is added sees one
:class:`Answer`, all that is known about a corrupted batch and the network's answer to it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, Protocol, cast

from torch import Tensor
from torch.nn.functional import cosine_similarity

from ldm_lightning.diffusion.denoiser import Denoiser
from ldm_lightning.diffusion.needs import Needs
from ldm_lightning.diffusion.path import GaussianPath
from ldm_lightning.diffusion.prediction import Linear
from ldm_lightning.errors import UserError

__all__ = ["Answer", "Contrastive", "LossTerm", "VelocityDirection"]


@dataclass(frozen=True, eq=False)
class Answer:
    """What a network answered in training.

    Attributes:
        denoiser: the network with its path and prediction.
        z0: (B, C, *space) clean latents.
        noise: what they were corrupted with.
        t: (B,) times.
        said: all that the network answered; of twice the channels where it learns a variance.
        target: what its prediction should have been, shaped like ``z0``.
        weight: (B,) of the denoising error at these times.
    """

    denoiser: Denoiser
    z0: Tensor
    noise: Tensor
    t: Tensor
    said: Tensor
    target: Tensor
    weight: Tensor

    @property
    def output(self) -> Tensor:
        """The network's prediction, shaped like ``z0``."""
        return self.said[:, : self.z0.shape[1]]


class LossTerm(Protocol):
    """A term that is added to the denoising error; what it needs it declares as ``needs``."""

    @property
    def weight(self) -> float:
        """In the sum."""
        ...

    def __call__(self, answer: Answer) -> Tensor:
        """(B,) values."""
        ...


@dataclass(frozen=True)
class VelocityDirection:
    r"""1 - cos(velocity of the output, noise - z_0): where to, whatever how far (Yao et al. 2024, "FasterDiT").

    The angle is taken between vectors of C channels, at each position, and averaged over positions, alike at all times.

    It is an angle between flow velocities u = noise - z_0 whatever the network predicts: on the linear flow the
    velocity itself, on any other path that of the same ODE in the coordinates of the linear flow (see
    :mod:`~ldm_lightning.diffusion.sampler.flow_coordinates`). An output F that is off by :math:`F - F^*` is off in
    clean data by :math:`c_{out} (F - F^*)`, hence in velocity by

    .. math:: \hat u - u = -\frac{\alpha + \sigma}{\sigma} c_{out} (F - F^*) .

    Attributes:
        weight: in the sum; 1 as published.

    Raises:
        UserError: it is negative, which would reward wrong directions.
    """

    needs: ClassVar[Needs] = Needs(paths=(GaussianPath,))

    weight: float = 1.0

    def __post_init__(self) -> None:
        if not 0 <= self.weight < math.inf:
            raise UserError(f"objective.terms: the direction's weight={self.weight}: set at least 0; 1 is usual")

    def __call__(self, answer: Answer) -> Tensor:
        """(B,) in [0, 2]."""
        alpha, sigma = answer.denoiser.path.coefficients(answer.t, answer.z0)
        _, out = cast("Linear", answer.denoiser.prediction).coefficients(alpha, sigma)
        velocity = answer.noise - answer.z0
        off = -(alpha + sigma) * (out / sigma) * (answer.output - answer.target)
        return 1 - cosine_similarity(velocity + off, velocity, dim=1).flatten(1).mean(1)


@dataclass(frozen=True)
class Contrastive:
    r"""The squared error of the output to the target of another sample, to be made large (Stoica et al. 2025).

    Contrastive flow matching: with :math:`L = \|F - F^*\|^2 - \lambda \|F - \tilde F^*\|^2` the best output is
    :math:`(E[F^*] - \lambda E[\tilde F^*]) / (1 - \lambda)`, away from the mean of all targets, so that conditions are
    told apart. Squares are means over dimensions with the weight of the denoising error, in the space of the network's
    output; published for prediction=flow.

    The other target is made at the sample's own time of the latents and noise of the sample half a batch further on.
    Ranks take turns in dealing a batch out, so that this is the same sample on any number of ranks that each get an
    even number of samples; with odd numbers, or under gradient accumulation, which makes several small batches of a
    large one, it is another. A sample alone in its batch is its own negative.

    Attributes:
        strength: lambda in [0, 1); 0.05 as published.

    Raises:
        UserError: it is not, so that the loss has no minimum.
    """

    needs: ClassVar[Needs] = Needs(paths=(GaussianPath,))

    strength: float = 0.05

    def __post_init__(self) -> None:
        if not 0 <= self.strength < 1:
            raise UserError(
                f"objective.terms: the contrastive strength={self.strength} leaves no minimum: set it from 0 to below 1"
            )

    @property
    def weight(self) -> float:
        """Minus the strength."""
        return -self.strength

    def __call__(self, answer: Answer) -> Tensor:
        """(B,) weighted squared distances to the other sample's target."""
        half = len(answer.z0) // 2
        others = [part.roll(-half, 0) for part in (answer.z0, answer.noise)]
        target = answer.denoiser.target(others[0], others[1], answer.t)
        return answer.weight * answer.denoiser.path.loss(answer.output, target)
