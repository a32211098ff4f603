r"""Checks of what the exported model does: are its samples like data, and does validation tell models apart.

A denoiser that has learned too little draws latents of the right size whose places and channels hardly know of each
other; the decoder makes speckle of them. So what is looked at is the local structure of latents z, their covariances

.. math:: k = \operatorname{E}[z_c(x) \, z_{c'}(x + d)], \qquad d \in \{0, e_1, e_2, \dots\},

between channels at a place (:math:`c \ne c'`) and at neighbouring places along each axis, averaged over all places x.
The share of it that samples have is :math:`\langle k_{drawn}, k \rangle / \langle k, k \rangle`, the slope of the
regression of theirs on that of data: 1 where they are alike, 0 for noise. Bits and numbers have one alike.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ldm_lightning.diagnosis.course import MODERATE_LR
from ldm_lightning.diagnosis.run import Run
from ldm_lightning.diagnosis.verdict import Verdict, fine, unknown, wrong

__all__ = ["few_to_validate", "speckle"]

# Of the structure of data. Second stages of digits that drew speckle had 0.53 (numbers) and 0.31 (bits), digits with
# gaps 0.81 to 0.88, and those trained to their end 0.91 to 0.99.
KEPT = 0.75
SURE = 2.0  # standard errors: one healthy run in 40 would be doubted if it stood at the threshold itself
VAGUE = 0.15  # standard error, from which on a share of 1 and the threshold cannot be told apart
LOST = 0.3  # standard error, from which on nothing is said at all
_SUBJECT = "structure of the samples"
COARSE = 20  # evaluations, below which a sampler's own error may be what is seen
NOISY = 0.05  # standard error of a mean, relative
ENOUGH = 50  # items, below which that error is itself known no better than to a tenth, 1 / sqrt(2 n)


def few_to_validate(run: Run) -> Verdict:
    """The figure that chooses the best checkpoint is mostly chance of which items were kept for it.

    It is a mean over N items and has a standard error of their deviation over sqrt(N). That of a comparison of two
    checkpoints on the same items is smaller, since what is hard for one is hard for the other, but it is not known from
    one of them. So what is asked is little: that a rise of 5 %, which :func:`overfitting` takes for one, is more than
    one standard error; and that there are items enough to know that error by.
    """
    if isinstance(run.trial, str):
        return unknown("size of the validation set", run.trial)
    errors, n = run.trial.errors.double(), run.trial.validation
    if len(errors) < 2 or not bool(errors.isfinite().all()) or errors.mean() <= 0:
        return unknown("size of the validation set", f"the error of {len(errors)} items has no scatter")
    scatter = float(errors.std() / errors.mean())
    error = scatter / math.sqrt(n)
    seen = (
        f"the mean over {n} items has a standard error of {error:.1%}: a single one's deviates by {scatter:.0%} of it "
        f"@{len(errors)}"
    )
    if error <= NOISY and n >= ENOUGH:
        return fine("size of the validation set", seen)
    needed = max(ENOUGH, math.ceil((scatter / NOISY) ** 2))
    share = float(run.setting("data.validation", 0))
    larger = (
        [f"data.validation={math.ceil(100 * share * needed / n) / 100:g}: now {share:g}, for about {needed} items"]
        if 0 < share * needed / n <= 0.5
        else []
    )
    return wrong(
        "validation set too small",
        f"{seen}; about {needed} would bring it below {NOISY:.0%}",
        "which checkpoint is the best, and whether training overfits, is then decided by which items happened to be "
        "kept for it",
        *larger,
        "more data; until then trust the last checkpoint, and look at samples/",
    )


def speckle(run: Run) -> Verdict | None:
    """Samples of a second stage whose places and channels fit each other far less than those of data."""
    if run.learns_latents:
        return None
    if isinstance(run.trial, str):
        return unknown(_SUBJECT, run.trial)
    real, drawn = run.trial.real, run.trial.drawn
    if real is None or drawn is None:
        return unknown(_SUBJECT, run.trial.missing)
    if not bool(drawn.isfinite().all()):
        seen = f"of {len(drawn)} draws some hold NaN or infinity"
        return wrong("samples are not finite", seen, "nothing can be drawn", *_more(run))
    return _compared(run, real, drawn)


def _compared(run: Run, real: Tensor, drawn: Tensor) -> Verdict:
    kept, error = _kept(real, drawn)
    speckled = kept + SURE * error < KEPT and error <= LOST
    if not (speckled or error <= VAGUE):
        return unknown(_SUBJECT, f"latents of {len(real)} validation items show too little of it to compare with")
    seen = (
        f"{len(drawn)} draws without guidance have {kept:.0%} (standard error {error:.0%}) of the correlation between "
        f"channels and neighbouring places that latents of {len(real)} validation items have; "
        f"std {float(drawn.std()):.3g} and {float(real.std()):.3g}"
    )
    if not speckled:
        return fine(_SUBJECT, seen)
    return wrong(
        "samples are speckle",
        seen,
        "latents whose places do not fit each other are decoded to speckle and broken shapes, however low the loss",
        *_more(run),
    )


def _more(run: Run) -> list[str]:
    steps, lr, most = run.setting("sampler.steps"), float(run.setting("optim.lr", 0)), run.steps
    changes = [f"trainer.max_steps={4 * most}: it made {most}, and figures of samples improve long after the loss"]
    if 0 < lr < MODERATE_LR:
        changes.append(
            f"optim.lr={min(MODERATE_LR, 10 * lr):.0e}: now {lr:.0e}; in short runs small networks need more"
        )
    if isinstance(steps, int) and steps < COARSE:
        changes.insert(
            0, f"sampler.steps={2 * COARSE}: now {steps}, which may be all that is wrong; ldm sample takes it too"
        )
    return changes


def _kept(real: Tensor, drawn: Tensor) -> tuple[float, float]:
    """Share of the structure of ``real`` that ``drawn`` has, and its standard error; NaN or infinite without any."""
    ours, theirs = _covariances(drawn), _covariances(real)
    n = len(theirs)
    if min(n, len(ours)) < 2:
        return math.nan, math.inf
    k, noise = theirs.mean(0), theirs.var(0).sum()
    size = k @ k - noise / n  # |k|^2 without what chance adds to it
    slope = ours @ k / size
    left_out = (n * k - theirs) / (n - 1)  # the jackknife: each item of data is left out once
    again = (left_out @ ours.mean(0)) / (left_out.square().sum(1) - noise / (n - 1))
    variance = slope.var() / len(slope) + (n - 1) / n * (again - again.mean()).square().sum()
    return float(slope.mean()), float(variance.sqrt()) if size > 0 else math.inf


def _covariances(z: Tensor) -> Tensor:
    """(n, D) covariances of each item of ``z`` (n, C, *space), between channels and between neighbouring places."""
    z = z.double()
    z = z - z.mean([0, *range(2, z.ndim)], keepdim=True)
    channels = z.shape[1]
    found = [_products(z, z)[:, ~torch.eye(channels, dtype=torch.bool, device=z.device)]]
    for axis, side in enumerate(z.shape[2:], start=2):
        if side > 1:
            found.append(_products(z.narrow(axis, 1, side - 1), z.narrow(axis, 0, side - 1)).flatten(1))
    return torch.cat(found, 1)


def _products(one: Tensor, other: Tensor) -> Tensor:
    """(n, C, C) means over places of the products of channels."""
    one, other = one.flatten(2), other.flatten(2)
    return one @ other.mT / one.shape[2]
