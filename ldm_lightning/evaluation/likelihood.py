"""The likelihood of unseen latents under a trained second stage, as a figure of ``ldm evaluate likelihood=...``."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import fields

import torch

from ldm_lightning.data.batch import Batch
from ldm_lightning.diffusion.denoiser import Denoiser
from ldm_lightning.diffusion.guidance import ClassifierFree
from ldm_lightning.diffusion.likelihood import LikelihoodMethod
from ldm_lightning.diffusion.needs import check_path
from ldm_lightning.diffusion.path import BernoulliPath
from ldm_lightning.errors import UserError
from ldm_lightning.evaluation.figures import Figures, number
from ldm_lightning.latent.frozen import FrozenFirstStage
from ldm_lightning.rng import Streams

__all__ = ["measure_likelihood"]


def measure_likelihood(
    method: LikelihoodMethod,
    denoiser: Denoiser,
    first_stage: FrozenFirstStage,
    batches: Iterable[Batch],
    *,
    seed: int,
    device: torch.device,
    self_conditioned: bool = False,
) -> tuple[Figures, dict[str, str]]:
    """Figures and protocol of unseen items, each under its own condition, without guidance.

    On a Gaussian path discrete latents have a probability and no density; "discrete" in the figure's name says so.

    Args:
        method: how the likelihood is found.
        denoiser: trained, on ``device``.
        first_stage: that the latents are of.
        batches: of the items.
        seed: of the posterior's noise and of the method.
        device: where all of it runs.
        self_conditioned: whether the denoiser was trained with its own estimates, which the likelihood does without.

    Raises:
        UserError: the latents are codes of a book; or some are discrete and others not.
    """
    check_path("likelihood", method, denoiser.path)
    bits = isinstance(denoiser.path, BernoulliPath)
    nats, evaluations, spacings = [], [], []
    for batch in batches:
        own = batch.to(device)
        streams = Streams(seed, own.index)
        z0 = first_stage.encode(own.x, streams)
        spacing = None if bits else first_stage.scale.spacing(z0)
        spacings.append([] if spacing is None else spacing.tolist())
        if spacings[-1] != spacings[0]:
            raise UserError(
                "likelihood: some pictures hold values of 8 bits and others do not, and the probability of the one and "
                "the density of the other have no mean: measure them apart"
            )
        denoise = ClassifierFree()(denoiser, own.condition)
        result = method(denoise, denoiser.path, z0, streams, spacing=spacing)
        nats.append(result.nats.cpu())
        evaluations.append(result.evaluations)
    values, discrete = torch.cat(nats), bool(spacings[0])
    settings = {field.name: getattr(method, field.name) for field in fields(method)}  # type: ignore[arg-type]
    named = ", ".join(f"{name}={getattr(value, '__name__', value)}" for name, value in settings.items())
    plain = ", without self-conditioning" if self_conditioned else ""
    points = ", discrete: upper bound on -log probability of their cells" if discrete else ""
    text = (
        f"{type(method).__name__}({named}), {max(evaluations)} evaluations; nats per dimension of standardized latents "
        f"drawn from the first stage's posterior{points}, unguided{plain}, "
        f"standard error {values.std() / len(values) ** 0.5:.2g}"
    )
    label = f"{method.label}_discrete" if discrete else method.label
    return {f"{label}_per_dim@{len(values)}": number(values.mean())}, {"likelihood": text}
