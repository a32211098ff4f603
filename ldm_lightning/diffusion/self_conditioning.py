r"""Self-conditioning: the network sees its own last estimate of the clean latents (Chen et al. 2022, "Analog bits").

.. math:: \hat z_0 = f(z_t, t, \tilde z_0), \qquad \tilde z_0 = \text{an earlier } \hat z_0, \text{ or } 0 .

In training the earlier estimate is made by a first pass without gradient, :math:`f(z_t, t, 0)`, for a share of the
samples, and zero for the others. In sampling it is what the sampler was last answered, guidance included: every
evaluation, also the second one of a step, builds on the one before, and the first on zero.

The network finds the estimate among its conditions, under the name :data:`ESTIMATE`, and one that does not read it does
not notice. It is no condition to be dropped: the null condition comes with the same estimate.

Without an estimate the network is a denoiser like any other, a function of z and t. That is the one of which a
likelihood is measured, and by which a model without self-conditioning is guided.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from ldm_lightning.diffusion.denoised import Denoised, Guided, Level
from ldm_lightning.diffusion.denoiser import ESTIMATE, Denoiser
from ldm_lightning.diffusion.needs import needs_of
from ldm_lightning.diffusion.sampler import Sampler
from ldm_lightning.errors import UserError

__all__ = ["ESTIMATE", "Remembering", "check_evaluated_once", "first_estimate"]


@torch.no_grad()
def first_estimate(denoiser: Denoiser, z: Tensor, t: Tensor, condition: Mapping[str, Tensor], drop: Tensor) -> Tensor:
    """The clean latents, as the denoiser estimates them without an estimate; arguments as of ``Denoiser.clean``."""
    clean = denoiser.clean(z, t, condition, drop)
    # Older versions of torch keep what autocast has cast here, without a gradient, and use it in the pass that has one.
    torch.clear_autocast_cache()
    return clean


class Remembering:
    """The denoise function of one sampling that tells ``guided`` each time what it answered last, at first nothing."""

    def __init__(self, guided: Guided) -> None:
        self._guided = guided
        self._estimate: Tensor | None = None

    def __call__(self, z: Tensor, level: Level) -> Denoised:
        """Answer, and remember the answer."""
        answer = self._guided(z, level, self._estimate)
        self._estimate = answer.clean
        return answer


def check_evaluated_once(sampler: Sampler) -> None:
    """Refuse a sampler that needs a function of z and t alone.

    Raises:
        UserError: it does, as the adaptive solver, which compares answers and takes steps back.
    """
    if needs_of(sampler).memoryless:
        raise UserError(
            f"{type(sampler).__name__} solves an equation, as sampler=adaptive does, but an answer of a "
            "self-conditioned model depends on the one before: choose another sampler, such as heun"
        )
