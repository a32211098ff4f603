"""Checks of the latents: do they say something, are they of a sane size, are they as coarse as pictures."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ldm_lightning.diagnosis.course import LARGE_LR, lower_lr
from ldm_lightning.diagnosis.run import Figure, Run
from ldm_lightning.diagnosis.verdict import Verdict, fine, unknown, wrong
from ldm_lightning.latent.figures import ACTIVE, active_channels
from ldm_lightning.latent.spectrum import octaves

__all__ = ["collapsed_channels", "exploding_scale", "fine_detail", "not_standardized"]

# Deviations of the raw latents of published autoencoders, from their scale factors: 5.5 (Stable Diffusion 1), 7.7
# (SDXL), 0.65 (Stable Diffusion 3), 2.8 (FLUX). This is three times the largest.
LARGE = 25.0
VANISHING = 1e-8  # noise's share in a channel's variance: sigma is a ten-thousandth of std, the KL pulls at nothing
# What a second stage is given should have mean 0 and deviation 1 for each channel; sampling error is far below this.
OFF_MEAN, OFF_STD = 0.3, (0.7, 1.4)
ROUNDING = 1e-5

# How far the finest octave's share may lie on the way from the pictures' to white noise's. Healthy first stages were at
# 0.62 after 100 steps, at 0.27 (digits) and 0.38 (clothes) in the end.
DETAIL = 0.8
TRAINED = 100  # optimizer steps, before which an encoder gives noise

_LOSS = "first_stage.loss"
_CERTAIN = ("VectorQuantizer", "FiniteScalar", "BinarySpherical", "Identity")  # bottlenecks whose KL is a constant


def _moments(run: Run) -> tuple[Tensor, Tensor, Tensor, str] | None:
    """Mean, std and sigma of each channel and where they are from: the last validation, else the artifact."""
    mean, std, sigma = (run.series(f"val/latent/{name}") for name in ("mean", "std", "sigma"))
    if std:
        place = f"@{std[0].n} (step {std[0].step})"
        return _values(mean), _values(std), _values(sigma) if sigma else torch.zeros(len(std)), place
    if run.statistics is None:
        return None
    measured = {"sigma": [0.0] * len(run.statistics["std"]), **run.statistics}
    first, second, third = (torch.tensor(measured[name]) for name in ("mean", "std", "sigma"))
    return first, second, third, f"@{measured['n']} (export)"


def _values(figures: list[Figure]) -> Tensor:
    return torch.tensor([figure.value for figure in figures])


def _numbers(values: Tensor) -> str:
    """A few numbers, or their range."""
    if len(values) <= 4:
        return ", ".join(f"{value:.3g}" for value in values.tolist())
    return f"{values.min():.3g} to {values.max():.3g}"


def collapsed_channels(run: Run) -> Verdict | None:
    """Channels that say nothing about the picture."""
    if not run.learns_latents:
        return None
    moments = _moments(run)
    if moments is None:
        return unknown("active channels", "latents have not been measured yet")
    mean, std, sigma, place = moments
    active = active_channels(mean, std, sigma)
    if active.all() and not sigma.any() and run.bottleneck not in _CERTAIN:
        return unknown("active channels", "the posterior's sigma was not measured by the version that trained this run")
    dead = [channel for channel, alive in enumerate(active.tolist()) if not alive]
    told = 1 - (sigma / std).square()
    seen = f"{len(std) - len(dead)} of {len(std)} channels are active {place}"
    if not dead:
        return fine("active channels", f"{seen}, {told.mean():.1%} of their variance is the picture's")
    which = ", ".join(map(str, dead[:8])) + (" ..." if len(dead) > 8 else "")
    return wrong(
        "collapsed channels",
        f"{seen}; of channel {which} at most {told[~active].nan_to_num(0).max():.1%} of the variance is the picture's "
        f"({ACTIVE:.0%} is needed), std {_numbers(std[~active])}",
        "a channel that does not depend on the picture is lost to the decoder, and the second stage learns its noise",
        *_against_collapse(run),
    )


def _against_collapse(run: Run) -> list[str]:
    weight = float(run.setting(f"{_LOSS}.kl_weight", 0))
    fewer = "first_stage.autoencoder.bottleneck.latent_channels smaller, if the rest suffices"
    if run.bottleneck in _CERTAIN or weight == 0:
        return [fewer, lower_lr(run)]
    lower = min(weight / 10, 1e-4) if weight > 1e-4 else weight / 10
    return [
        f"{_LOSS}.kl_weight={lower:.0e}: now {weight:g}, which pulls every channel to the prior",
        f"{_LOSS}.free_nats=0.5: so much information for each latent element costs nothing",
        fewer,
    ]


def exploding_scale(run: Run) -> Verdict | None:
    """Latents of a size that no prior holds."""
    if not run.learns_latents or run.bottleneck not in ("Gaussian", "VectorQuantizer", "GumbelSoftmax"):
        return None
    moments = _moments(run)
    if moments is None:
        return unknown("scale of the latents", "latents have not been measured yet")
    mean, std, sigma, place = moments
    size, weight = (mean.square() + std.square()).sqrt().max(), float(run.setting(f"{_LOSS}.kl_weight", 0))
    seen = f"std {_numbers(std)} {place}"
    if sigma.any():
        seen += f", sigma {_numbers(sigma)}"
    vanishing = bool(sigma.any()) and bool(((sigma / std).square() < VANISHING).all())
    unheld, kl = _unheld(run, weight)
    if not (size > LARGE or vanishing or unheld):
        return fine("scale of the latents", seen)
    pull = (
        f"{_LOSS}.kl_weight={10 * weight or 1e-4:.0e}: now {weight:g}, too small to matter"
        if run.bottleneck == "Gaussian"
        else "first_stage.autoencoder.bottleneck.commitment_weight=1.0: it holds the encoder to the book"
    )
    fast = float(run.setting("optim.lr", 0)) > LARGE_LR
    return wrong(
        "exploding scale" if size > LARGE else "nothing holds the scale",
        f"{seen}, mean {_numbers(mean)}{kl}; published autoencoders have std 0.6 to 8",
        "without a pull to the prior the posterior's noise vanishes and the scale is free to grow; such latents need "
        "not be smooth, and small errors of the second stage may be large to the decoder",
        *((lower_lr(run), pull) if fast else (pull, lower_lr(run))),
    )


def _unheld(run: Run, weight: float) -> tuple[bool, str]:
    """Whether a KL without weight grows, and words for it."""
    points, _ = run.curve("val/kl")
    grows = run.bottleneck == "Gaussian" and weight == 0 and len(points) > 1 and points[-1][1] > points[0][1]
    said = f"; val/kl went from {points[0][1]:.3g} to {points[-1][1]:.3g} nats an element" if grows else ""
    return grows, said


def fine_detail(run: Run) -> Verdict | None:
    """Latents whose spectrum is far nearer to white noise than to pictures; those of codes always are."""
    if not run.learns_latents or run.bottleneck != "Gaussian":
        return None
    latents, pictures = run.last("val/latent/spectrum/2"), run.last("val/latent/picture_spectrum/2")
    if latents is None or pictures is None:
        return unknown("spectrum of the latents", "no validation has measured it (or no channel is active)")
    if run.steps < TRAINED:
        return unknown("spectrum of the latents", f"an encoder of {run.steps} steps gives noise, {TRAINED} are needed")
    places = run.last("val/latent/places")
    side = max(2, round(math.sqrt(places.value))) if places else 64
    white = float((octaves((side, side)) == 0).sum()) / (side * side - 1)
    seen = (
        f"{latents.value:.0%} of their power lies in waves of 2 to 4 places @{latents.n} (step {latents.step}); of the "
        f"pictures' at this size it is {pictures.value:.0%}, of white noise {white:.0%}"
    )
    if latents.value <= pictures.value + DETAIL * max(0.0, white - pictures.value):
        return fine("spectrum of the latents", seen)
    return wrong(
        "latents full of fine detail",
        seen,
        "diffusion makes coarse structure first and fine detail last; noise-like detail is hard to learn, and its "
        "errors show in the pictures (Skorokhodov et al. 2025)",
        "regularizer=equivariance",
        f"{_LOSS}.kl_weight larger: now {run.setting(f'{_LOSS}.kl_weight', 0):g}",
        "first_stage.autoencoder.bottleneck.latent_channels smaller",
    )


def not_standardized(run: Run) -> Verdict | None:
    """Latents of a second stage that have not mean 0 and deviation 1, as its first stage promised."""
    mean, std = (run.series(f"val/latent/{name}") for name in ("mean", "std"))
    if run.learns_latents or run.setting("first_stage.run") is None or not std:
        return None
    means, stds, place = _values(mean), _values(std), f"@{std[0].n} (step {std[0].step})"
    seen = f"mean {_numbers(means)}, std {_numbers(stds)} {place}"
    low, high = OFF_STD
    if ((means.square() + stds.square() - 1).abs() < ROUNDING).all():
        return None  # bits, -1 and 1, which may be anything on average
    if means.abs().max() <= OFF_MEAN and stds.min() >= low and stds.max() <= high:
        return fine("standardized latents", seen)
    return wrong(
        "latents not standardized",
        f"{seen}; they should be about 0 and 1",
        "schedule and sampler assume it; the pictures are others than those the first stage was measured on",
        "train the first stage on these pictures, or on all kinds of them",
        "the same data.transform in both stages",
    )
