"""Whether the parts of a second stage fit each other; what does not is refused before anything is written.

Samplers, predictions and terms of the loss declare what they need (:class:`~ldm_lightning.diffusion.needs.Needs`).
Whether times and weights need a signal-to-noise ratio is found out by asking each for one number.
"""

from __future__ import annotations

import torch

from ldm_lightning.diffusion.denoiser import Denoiser
from ldm_lightning.diffusion.needs import check_path, is_for, needs_of
from ldm_lightning.diffusion.path import BernoulliPath
from ldm_lightning.diffusion.sampler import Sampler
from ldm_lightning.errors import UserError
from ldm_lightning.latent.scale import BitScale
from ldm_lightning.training.latent_diffusion import LatentDiffusion

__all__ = ["check_fit", "check_sampler"]


def check_fit(module: LatentDiffusion) -> None:
    """Check all parts of ``module``.

    Raises:
        UserError: the first that does not fit.
    """
    path = module.denoiser.path
    check_sampler(module.sampler, module.denoiser)
    if module.denoiser.learns_variance != any(needs_of(term).variance for term in module.objective.terms.values()):
        raise UserError(
            "prediction=learned_variance and objective=hybrid, which trains the variance, belong together: choose both "
            "or neither"
        )
    if isinstance(path, BernoulliPath):
        _check_bits(module, path)
    for name, term in module.objective.terms.items():
        check_path(f"objective.terms.{name}", term, path)


def check_sampler(sampler: Sampler, denoiser: Denoiser) -> None:
    """Check whether ``sampler`` can draw from ``denoiser``.

    Raises:
        UserError: it is for another path, or asks for a variance that was not learned.
    """
    check_path("sampler", sampler, denoiser.path)
    if needs_of(sampler).variance and not denoiser.learns_variance:
        raise UserError(
            "the sampler asks for a variance, which this model has not learned: choose sampler=ddpm, or train with "
            "prediction=learned_variance objective=hybrid"
        )


def _check_bits(module: LatentDiffusion, path: BernoulliPath) -> None:
    """What needs continuous latents or a signal-to-noise ratio is not for bits."""
    if not isinstance(module.first_stage.scale, BitScale):
        raise UserError(
            "the path is a BernoulliPath of bits, but the first stage has continuous latents: choose path=linear_flow, "
            "or train a first stage with first_stage=bernoulli_f4 or bsq_f4"
        )
    half = torch.full((1,), 0.5)
    try:
        module.objective.time_law(half, path.schedule)
        module.objective.weighting(module.denoiser, half)
    except UserError as error:
        raise UserError(f"objective: {error}: choose objective=uniform") from error
    for name, term in module.objective.terms.items():
        if not is_for(term, path):
            raise UserError(f"objective.terms.{name} is for continuous latents, not for bits: choose objective=uniform")
    if module.objective.self_conditioning:
        raise UserError("objective.self_conditioning shows estimates of continuous latents, not of bits: set it to 0")
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
