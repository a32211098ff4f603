"""Bottlenecks: how an encoder's output becomes a posterior over latents, one family a file."""

from ldm_lightning.latent.bottleneck.base import Bottleneck
from ldm_lightning.latent.bottleneck.bernoulli import Bernoulli
from ldm_lightning.latent.bottleneck.binary_spherical import BinarySpherical
from ldm_lightning.latent.bottleneck.finite_scalar import FiniteScalar
from ldm_lightning.latent.bottleneck.gaussian import Gaussian
from ldm_lightning.latent.bottleneck.gumbel import GumbelSoftmax
from ldm_lightning.latent.bottleneck.identity import Identity
from ldm_lightning.latent.bottleneck.vector import VectorQuantizer

__all__ = [
    "Bernoulli",
    "BinarySpherical",
    "Bottleneck",
    "FiniteScalar",
    "Gaussian",
    "GumbelSoftmax",
    "Identity",
    "VectorQuantizer",
]
