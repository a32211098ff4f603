"""Regularizers of the latent space: terms that make latents easier to model, not pictures easier to reconstruct.

Each is a module that is called with the passage of a batch through the autoencoder and answers a :class:`Term`. What
is drawn for a whole batch, such as a transformation, is drawn from the step alone, so that all processes, and all
batches of one accumulated step, see the same.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ldm_lightning.errors import UserError
from ldm_lightning.latent.adversarial import AdaptiveWeight
from ldm_lightning.loss import Term
from ldm_lightning.rng import Streams

__all__ = ["Alignment", "Equivariance", "FeatureMap", "Passage"]


@dataclass(frozen=True, eq=False)
class Passage:
    """One batch on its way through the autoencoder.

    Attributes:
        x: pictures (B, C, H, W).
        z: posterior draws (B, c, h, w), with their gradient.
        decode: latents -> pictures, in training.
        streams: one stream, the same for the whole step on every process, on the CPU.
        fidelity: distances of the reconstruction, weighted and summed, a scalar with its graph.
        encoder_layer: the last weight of the encoder.
    """

    x: Tensor
    z: Tensor
    decode: Callable[[Tensor], Tensor]
    streams: Streams
    fidelity: Tensor
    encoder_layer: Tensor


class Equivariance(nn.Module):
    """EQ-VAE (Kouzelis et al. 2025): scaled and rotated latents decode to scaled and rotated pictures.

    A step draws one scale, uniform in [``least``, 1], and one of the four right-angle rotations.

    This is a term of its own, at every step, and costs a second pass of the decoder. The published code has no such
    term. It changes what its whole loss (pixels, perception, adversary) is taken of, step by step: in half of the steps
    of transformed latents and pictures, always both scaled, by 8/32 to 31/32, and turned, by one to three right angles;
    in an eighth of pictures that are small from the start; and in the rest as usual. Here every step keeps the usual
    loss, so that it means the same in training and validation, under accumulation and for the adversary, which sees
    pictures of one size. And resizing averages, where theirs picks, since what aliases is not equivariant.

    Args:
        distance: (reconstruction, picture) -> scalar.
        weight: of the term.
        least: smallest scale, in (0, 1].
    """

    def __init__(self, distance: Callable[[Tensor, Tensor], Tensor], weight: float = 0.5, least: float = 0.25) -> None:
        super().__init__()
        if not (0 < least <= 1 and weight > 0):
            raise UserError(f"equivariance: least={least} must lie in (0, 1], weight={weight} above 0")
        self.distance = distance
        self.weight = weight
        self.least = least

    def forward(self, passage: Passage) -> Term:
        """The distance between decoded transformed latents and transformed pictures."""
        scale, turn = passage.streams.uniform("equivariance", (2,))[0].tolist()
        turns, (height, width) = int(4 * turn), passage.z.shape[2:]
        scale = self.least + (1 - self.least) * scale
        size = [max(1, round(scale * side)) for side in (height, width)]
        factor = passage.x.shape[2] // height
        z = _transform(passage.z, size, turns)
        x = _transform(passage.x, [factor * side for side in size], turns)
        return Term(self.distance(passage.decode(z), x), self.weight)


def _transform(x: Tensor, size: list[int], turns: int) -> Tensor:
    """``x`` resized to ``size``, then turned by ``turns`` right angles."""
    resized = F.interpolate(x, size, mode="bilinear", antialias=True, align_corners=False)
    return torch.rot90(resized, turns, (2, 3))


class FeatureMap(Protocol):
    """A frozen network that answers maps of features, such as an extractor of the metrics."""

    dim: int

    def feature_map(self, images: Tensor) -> Tensor:
        """(B, dim, h, w) of pictures (B, C, H, W) in [-1, 1]."""
        ...


class Alignment(nn.Module):
    """Alignment with a frozen network's features (Yao & Wang 2025, "VA-VAE").

    Two hinges, each satisfied within its margin: every latent, linearly projected, points in the direction of the
    feature at its place; and within a picture, the cosine similarities between places are those of the features.

    By default the similarities are those of the latents themselves, which the second stage will see, and the weight is
    a constant, so that the loss is one and the same function throughout. The published code compares projected latents
    in both hinges and balances the weight by gradients: ``projected`` and ``balance``, both set by
    ``regularizer=va_vae``. Beyond that its features are DINOv2's or MAE's, on a grid as fine as the latents', and here
    those of any network, interpolated to the latents' places.

    Args:
        features: the frozen network; kept out of checkpoints, optimizers and DDP.
        latent_channels: channels of a latent.
        weight: of the term.
        angle: margin of 1 - cosine, in [0, 2).
        structure: margin of the difference between similarities, in [0, 2).
        projected: take the similarities between projected latents.
        balance: multiplies the weight by the ratio of the gradients of reconstruction and alignment at the encoder's
            last layer; None leaves it constant.
    """

    def __init__(
        self,
        features: FeatureMap,
        latent_channels: int,
        weight: float = 0.1,
        angle: float = 0.5,
        structure: float = 0.25,
        *,
        projected: bool = False,
        balance: AdaptiveWeight | None = None,
    ) -> None:
        super().__init__()
        if not (0 <= angle < 2 and 0 <= structure < 2 and weight > 0):
            raise UserError(
                f"alignment: angle={angle} and structure={structure} must lie in [0, 2), weight={weight} above 0"
            )
        self.frozen = (features,)  # in a tuple, where nn.Module does not see it
        self.projection = nn.Conv2d(latent_channels, features.dim, 1, bias=False)
        self.weight, self.angle, self.structure = weight, angle, structure
        self.projected, self.balance = projected, balance

    def forward(self, passage: Passage) -> Term:
        """The sum of both hinges, a mean over places and over pairs of places."""
        with torch.no_grad():
            network = self.frozen[0]
            if isinstance(network, nn.Module):
                network.to(passage.x.device)
            features = network.feature_map(passage.x).float()
            features = F.interpolate(features, passage.z.shape[2:], mode="bilinear", align_corners=False)
            f = F.normalize(features.flatten(2), dim=1)
        with torch.autocast(passage.x.device.type, enabled=False):  # differences of nearly equal cosines
            projected = F.normalize(self.projection(passage.z.float()).flatten(2), dim=1)
            z = projected if self.projected else F.normalize(passage.z.float().flatten(2), dim=1)
            apart = F.relu(1 - self.angle - (projected * f).sum(1)).mean()
            similarity, wanted = z.transpose(1, 2) @ z, f.transpose(1, 2) @ f
            distorted = F.relu((similarity - wanted).abs() - self.structure).mean()
        value = apart + distorted
        if self.balance is None:
            return Term(value, self.weight)
        return Term(value, self.weight * self.balance(passage.fidelity, value, passage.encoder_layer))
