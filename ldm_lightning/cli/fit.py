"""Whether the parts of a second stage fit its path; what does not is refused before anything is written.

Samplers and predictions say by an annotation which paths they are for
(:func:`~ldm_lightning.diffusion.path.check_path`). Whether times and weights need a signal-to-noise ratio is found out
by asking each for one number.
"""

from __future__ import annotations

import torch

from ldm_lightning.diffusion.path import BernoulliPath, check_path
from ldm_lightning.errors import UserError
from ldm_lightning.latent.scale import BitScale
from ldm_lightning.training.latent_diffusion import LatentDiffusion

__all__ = ["check_fit"]


def check_fit(module: LatentDiffusion) -> None:
    """Check all parts of ``module`` against its path.

    Raises:
        UserError: the first that does not fit.
    """
    path = module.denoiser.path
    check_path("sampler", module.sampler.__call__, path)
    if not isinstance(path, BernoulliPath):
        return
    if not isinstance(module.first_stage.scale, BitScale):
        raise UserError(
            "the path is a BernoulliPath of bits, but the first stage has continuous latents: choose path=linear_flow, "
            "or train a first stage with first_stage=bernoulli_f4"
        )
    half = torch.full((1,), 0.5)
    try:
        module.objective.time_law(half, path.schedule)
        module.objective.weighting(module.denoiser, half)
    except UserError as error:
        raise UserError(f"objective: {error}: choose objective=uniform") from error
    interval = getattr(module.guidance, "interval", None)
    if interval is not None and interval.of != "time":
        raise UserError(
            f"guidance.interval.of={interval.of} needs a signal-to-noise ratio, which bits do not have: set it to time"
        )
    if getattr(module.guidance, "rescale", 0):
        raise UserError(
            f"guidance.rescale={module.guidance.rescale} is for clean data, but here logits are guided: "  # type: ignore[attr-defined]
            "set guidance.rescale=0"
        )
