"""Paths: how clean data become noise, and the loss that belongs to it, one corruption a file.

A path owns the corruption q(z_t | z_0), the distribution it ends in, the posterior of one backward step and the loss
that matches its likelihood. The denoiser, the objective and the training module know no more of it than
:class:`~ldm_lightning.diffusion.path.protocol.Path` says. What needs more (a sampler, a prediction, a likelihood) is
for certain paths, and declares which (:mod:`~ldm_lightning.diffusion.needs`).
"""

from ldm_lightning.diffusion.path.bernoulli import BernoulliPath, cosine_keep, linear_keep
from ldm_lightning.diffusion.path.gaussian import GaussianPath
from ldm_lightning.diffusion.path.protocol import Path, expand

__all__ = ["BernoulliPath", "GaussianPath", "Path", "cosine_keep", "expand", "linear_keep"]
