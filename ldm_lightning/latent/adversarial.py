r"""Adversarial losses: three games, matched features, regularizers of the discriminator, the generator's weight.

``real`` and ``fake`` are the discriminator's logits, of any shape, for pictures and for their reconstructions, in the
same order; positive says real. All losses are means over them.

The adaptive weight (Esser et al. 2021, "VQGAN", eq. 7) makes the adversarial term pull at the decoder's last layer
:math:`L` as hard as the reconstruction does:

.. math:: \lambda = \frac{\lVert\nabla_L \mathcal{L}_{rec}\rVert}{\lVert\nabla_L \mathcal{L}_{adv}\rVert + \delta}
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

from ldm_lightning.errors import UserError
from ldm_lightning.ranks import mean_over_ranks

__all__ = [
    "AdaptiveWeight",
    "Game",
    "Hinge",
    "NonSaturating",
    "Relativistic",
    "feature_matching",
    "gradient_penalty",
    "lecam",
]


class Game(Protocol):
    """What the two players minimize."""

    def generator(self, real: Tensor, fake: Tensor) -> Tensor:
        """The generator's loss, a scalar; ``real`` has no gradient."""
        ...

    def discriminator(self, real: Tensor, fake: Tensor) -> Tensor:
        """The discriminator's loss, a scalar."""
        ...

    def accuracy(self, real: Tensor, fake: Tensor) -> Tensor:
        """The share of verdicts that are right, a scalar; 0.5 is guessing."""
        ...


@dataclass(frozen=True)
class Hinge:
    """The hinge game (Lim & Ye 2017); halved, as in Esser et al. 2021."""

    def generator(self, real: Tensor, fake: Tensor) -> Tensor:
        """-E[D(fake)]."""
        return -fake.mean()

    def discriminator(self, real: Tensor, fake: Tensor) -> Tensor:
        """(E[max(0, 1 - D(real))] + E[max(0, 1 + D(fake))]) / 2."""
        return 0.5 * (F.relu(1 - real).mean() + F.relu(1 + fake).mean())

    def accuracy(self, real: Tensor, fake: Tensor) -> Tensor:
        """P[sign]."""
        return _signs(real, fake)


@dataclass(frozen=True)
class NonSaturating:
    """The game of Goodfellow et al. 2014 in its form whose generator still learns when it loses."""

    def generator(self, real: Tensor, fake: Tensor) -> Tensor:
        """-E[log sigmoid(D(fake))]."""
        return F.softplus(-fake).mean()

    def discriminator(self, real: Tensor, fake: Tensor) -> Tensor:
        """-(E[log sigmoid(D(real))] + E[log sigmoid(-D(fake))]) / 2."""
        return 0.5 * (F.softplus(-real).mean() + F.softplus(fake).mean())

    def accuracy(self, real: Tensor, fake: Tensor) -> Tensor:
        """P[sign]."""
        return _signs(real, fake)


@dataclass(frozen=True)
class Relativistic:
    """The pairing game (Jolicoeur-Martineau 2018; Huang et al. 2024, "R3GAN"): which of the two is the picture?

    Every patch of a reconstruction is compared with the same patch of its original, so that only the difference between
    them counts, not how hard a picture is. It converges with both penalties, ``r1`` and ``r2``.
    """

    def generator(self, real: Tensor, fake: Tensor) -> Tensor:
        """-E[log sigmoid(D(fake) - D(real))]."""
        return F.softplus(real - fake).mean()

    def discriminator(self, real: Tensor, fake: Tensor) -> Tensor:
        """-E[log sigmoid(D(real) - D(fake))]."""
        return F.softplus(fake - real).mean()

    def accuracy(self, real: Tensor, fake: Tensor) -> Tensor:
        """P[D(real) > D(fake)]; a tie counts half."""
        return 0.5 * (torch.sign(real - fake).float().mean() + 1)


def _signs(real: Tensor, fake: Tensor) -> Tensor:
    """The share of logits with the right sign."""
    return torch.cat([real > 0, fake < 0]).float().mean()


def feature_matching(real: Sequence[Tensor], fake: Sequence[Tensor]) -> Tensor:
    """How far a discriminator's hidden features of reconstructions lie from those of their originals, a scalar.

    The similarity that is learned beside the verdict (Larsen et al. 2016, "VAE/GAN"): it says where and how a
    reconstruction differs in what the discriminator looks at, where the verdict says only whether. Every picture and
    every layer counts the same: its mean absolute difference, as a share of the mean size of the original's features,
    of 0.01 at least, since a blank picture may have none.

    Args:
        real: features (B, C_l, h_l, w_l) of pictures, a tensor a layer, without gradient.
        fake: likewise of their reconstructions.
    """
    shares = []
    for original, other in zip(real, fake, strict=True):
        size = original.float().flatten(1).abs().mean(1)
        difference = (other.float() - original.float()).flatten(1).abs().mean(1)
        shares.append(difference / size.clamp(min=0.01))
    return torch.stack(shares).mean()


def gradient_penalty(discriminator: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """Half the mean squared norm of the gradient of a picture's mean logit, a scalar (Mescheder et al. 2018).

    R1 when the pictures are real, R2 when they are reconstructions.

    Computed in float32 whatever the precision around it: the gradient of a gradient has no range to spare.

    Args:
        discriminator: pictures (B, C, H, W) -> logits (B, ...), each picture judged by itself.
        x: pictures; their graph is not entered.
    """
    with torch.autocast(x.device.type, enabled=False):
        x = x.detach().float().requires_grad_()
        logits = discriminator(x).reshape(len(x), -1).mean(1)
        (gradient,) = torch.autograd.grad(logits.sum(), x, create_graph=True)
        return 0.5 * gradient.square().flatten(1).sum(1).mean()


def lecam(real: Tensor, fake: Tensor, anchors: Tensor) -> Tensor:
    """LeCam regularization (Tseng et al. 2021, eq. 5) for little data: logits are pulled to the other side's mean.

    Args:
        real: logits.
        fake: logits.
        anchors: (2,) moving averages of the mean logits of real and of fake pictures, without gradient.
    """
    return (real - anchors[1]).square().mean() + (fake - anchors[0]).square().mean()


@dataclass(frozen=True)
class AdaptiveWeight:
    """The ratio of gradient norms at a last layer, at most ``cap``, without gradient.

    The gradients are those of the batch over all processes, so that these agree on the weight, and are of float32
    parameters, so that the weight is float32 under mixed precision too.

    Attributes:
        cap: largest weight, for when the discriminator has nothing to say.
        delta: of eq. 7.
    """

    cap: float = 100.0
    delta: float = 1e-6

    def __post_init__(self) -> None:
        if not (self.cap > 0 and self.delta > 0):
            raise UserError(f"first_stage.adversary.balance: cap={self.cap} and delta={self.delta} must be above 0")

    def __call__(self, reconstruction: Tensor, adversarial: Tensor, last_layer: Tensor) -> Tensor:
        """The weight, a scalar.

        Args:
            reconstruction: loss of this process, a scalar whose graph is kept.
            adversarial: what is to be weighted, the generator's loss for one, likewise.
            last_layer: the parameter both are differentiated by.
        """
        with torch.autocast(last_layer.device.type, enabled=False):
            gradients = [_gradient(loss, last_layer).float() for loss in (reconstruction, adversarial)]
            wanted, given = mean_over_ranks(torch.stack(gradients)).flatten(1).norm(dim=1)
            weight: Tensor = (wanted / (given + self.delta)).clamp(max=self.cap)
            return weight


def _gradient(loss: Tensor, parameter: Tensor) -> Tensor:
    (gradient,) = torch.autograd.grad(loss, parameter, retain_graph=True, allow_unused=True)
    if gradient is None:
        raise UserError(
            "the adaptive weight needs the output layer of decoder or encoder, but the weight that it registers last "
            "makes no pictures or latents: register the output layer last, or set first_stage.adversary.balance=null "
            "(of a regularizer: its balance=null)"
        )
    return gradient
