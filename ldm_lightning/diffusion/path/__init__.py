"""Paths: how clean data become noise, and the loss that belongs to it, one corruption a file.

A path owns the corruption q(z_t | z_0), the distribution it ends in, the posterior of one backward step and the loss
that matches its likelihood. The denoiser, the objective and the training module know no more of it than
:class:`~ldm_lightning.diffusion.path.protocol.Path` says. What needs more (a sampler, a prediction, a likelihood)
names the paths it is for by the annotation of its argument ``path``, and
:func:`~ldm_lightning.diffusion.path.protocol.check_path` refuses all others.
"""

from ldm_lightning.diffusion.path.bernoulli import BernoulliPath, cosine_keep, linear_keep
from ldm_lightning.diffusion.path.gaussian import GaussianPath
from ldm_lightning.diffusion.path.protocol import Path, check_path, expand

__all__ = ["BernoulliPath", "GaussianPath", "Path", "check_path", "cosine_keep", "expand", "linear_keep"]
