"""Posteriors: what an encoder says about the latents of a picture, one family a file."""

from ldm_lightning.latent.posterior.bernoulli import BernoulliPosterior
from ldm_lightning.latent.posterior.categorical import CategoricalPosterior
from ldm_lightning.latent.posterior.gaussian import GaussianPosterior
from ldm_lightning.latent.posterior.point import PointPosterior
from ldm_lightning.latent.posterior.protocol import Posterior

__all__ = ["BernoulliPosterior", "CategoricalPosterior", "GaussianPosterior", "PointPosterior", "Posterior"]
