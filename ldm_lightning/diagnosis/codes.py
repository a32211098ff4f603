"""Checks of a book of codes."""

from __future__ import annotations

import math

from ldm_lightning.diagnosis.course import lower_lr
from ldm_lightning.diagnosis.run import Run
from ldm_lightning.diagnosis.verdict import Verdict, fine, unknown, wrong

__all__ = ["dead_codes"]

# Of the codes that as many uniform draws would have hit. Healthy books of 512 (VQ) and 1,000 codes (FSQ) reach 94 % and
# more on Fashion-MNIST.
USED = 0.5
ENOUGH = 2.0  # latents counted for each code: with fewer, many codes had no chance


def dead_codes(run: Run) -> Verdict | None:
    """Most of a book is never chosen. Combinations of bits are not judged: they need not all occur."""
    if run.bottleneck not in ("VectorQuantizer", "GumbelSoftmax", "FiniteScalar"):
        return None
    node = "first_stage.autoencoder.bottleneck"
    usage, perplexity = run.last("val/code_usage"), run.last("val/code_perplexity")
    if usage is None or perplexity is None or usage.n is None:
        return unknown("use of the book", "no validation has counted codes and said of how many")
    levels = run.setting(f"{node}.levels")
    codes = math.prod(levels) if levels else int(run.setting(f"{node}.codes"))
    places = run.last("val/latent/places")
    counted = usage.n * (places.value if places else 1)
    seen = (
        f"{usage.value:.1%} of {codes} codes are used, perplexity {perplexity.value:.0f} @{usage.n} (step {usage.step})"
    )
    if counted < ENOUGH * codes:
        return unknown("use of the book", f"{seen}, but only {counted:.0f} latents were counted")
    if usage.value >= USED * (1 - math.exp(-counted / codes)):
        return fine("use of the book", seen)
    smaller = 2 ** max(1, math.ceil(math.log2(2 * perplexity.value)))
    return wrong(
        "dead codes",
        seen,
        "codes that are never chosen carry nothing and are never learned; a book this size is paid for in vain",
        *_changes(run, node, smaller),
    )


def _changes(run: Run, node: str, smaller: int) -> list[str]:
    if run.bottleneck == "FiniteScalar":
        return [f"fewer or smaller {node}.levels, about {smaller} codes in all", lower_lr(run)]
    fsq = "first_stage=fsq_f4: finite scalars have no book that could die"
    if run.bottleneck == "GumbelSoftmax":
        return ["first_stage.loss.kl_weight larger: it pulls towards even use", f"{node}.codes={smaller}", fsq]
    dead, every = float(run.setting(f"{node}.dead", 0)), int(run.setting(f"{node}.restart_every", 100))
    revive = (
        f"{node}.dead=0.03: with {dead:g} nothing is revived"
        if dead == 0
        else f"{node}.restart_every={max(1, every // 4)}: dead codes are revived more often"
    )
    return [revive, f"{node}.codes={smaller}: a smaller book", lower_lr(run), fsq]
