"""Checks of a training's course: does it fall, is it finite, does it generalize, was it ended."""

from __future__ import annotations

import math

from ldm_lightning.diagnosis.run import Points, Run, ends
from ldm_lightning.diagnosis.verdict import Verdict, fine, unknown, wrong

__all__ = [
    "blank_pictures",
    "diverging",
    "not_falling",
    "not_finished",
    "not_finite",
    "not_validated",
    "overfitting",
    "warming_up",
]

SKIPPED = 0.01  # share of steps; 16-bit training skips a few while its gradient scaler finds its scale
EARLY = 100  # optimizer steps before which reconstructions are not judged
RISE = 0.5  # share of a run; latents of digits after 200 steps of a rise over 1000 were noise, after 400 over 50 digits
POINTS = 10  # of a curve, to judge its course
FALLS = 0.98  # of its first values: what every loss here falls below within its first hundred steps
DIVERGES = 2.0  # times its lowest tenth; single batches scatter less than that once they are averaged
RISES = 1.05  # of the lowest validation: times and noise are the same at each, so that a rise is none of chance
NEW_LR = 0.3  # times the old one: a step on the usual grid of 1, 3, 10
LARGE_LR = 5e-3  # beyond it the advice is MODERATE_LR at once; shipped experiments use 1e-4 to 2e-3
MODERATE_LR = 1e-3
BLANK = 15.0  # dB; a collapsed first stage, which draws the mean picture, has 11 on digits, shipped experiments 27


def main_curve(run: Run, part: str) -> str:
    """The metric that tells how well a stage does its work, without weights that move."""
    if run.learns_latents:
        return f"{part}/reconstruction"
    return f"{part}/denoising" if run.last(f"{part}/denoising") else f"{part}/loss"


def lower_lr(run: Run) -> str:
    """The override for a smaller learning rate."""
    lr = float(run.setting("optim.lr", 1e-4))
    return f"optim.lr={NEW_LR * lr if lr <= LARGE_LR else MODERATE_LR:.0e}: now {lr:.0e}"


def not_finite(run: Run) -> Verdict:
    """Steps skipped for a loss or gradient that was not finite, or such values in the log."""
    spoilt = sorted(name for name, points in run.curves.items() if any(not math.isfinite(v) for _, v in points))
    skipped = run.last("train/skipped")
    if not run.curves:
        return unknown("finite steps", "nothing has been logged yet")
    seen = "all logged values are finite"
    if skipped:
        seen = f"{skipped.value:.0f} of {skipped.step} steps were skipped, their loss or gradient not finite"
    if not spoilt and (skipped is None or skipped.value <= SKIPPED * skipped.step):
        return fine("finite steps", seen)
    if spoilt:
        seen += f"; not finite in the log: {', '.join(spoilt[:3])}"
    return wrong(
        "values that are not finite",
        seen,
        "a skipped step teaches nothing, and many of them mean that training is about to diverge",
        lower_lr(run),
        "trainer.precision=32-true, if it was a 16-bit one",
        "look at the pictures: data.root may hold damaged or constant ones",
    )


def diverging(run: Run) -> Verdict | None:
    """The loss has risen far above its lowest."""
    if run.last("train/weight/adversarial"):
        return None  # a discriminator is another reason, see worse_after_join
    name = main_curve(run, "train")
    points, _ = run.curve(name)
    if len(points) < POINTS:
        return None  # not_falling says so
    lowest = min(_windows(points))
    last = ends(points)[1]
    seen = f"{name} is {last:.4g} at step {points[-1][0] + 1}, its lowest tenth was {lowest:.4g}"
    if not (math.isfinite(last) and lowest > 0 and last > DIVERGES * lowest):
        return fine("stable training", seen)
    return wrong(
        "diverging",
        seen,
        "what was learned is being lost",
        lower_lr(run),
        "learning_rate.warmup longer",
        "trainer.gradient_clip_val smaller",
    )


def _windows(points: Points) -> list[float]:
    """Means over neighbouring tenths of a curve, at least three points each."""
    width = max(3, len(points) // 10)
    values = [value for _, value in points]
    return [sum(values[i : i + width]) / width for i in range(0, len(values) - width + 1, width)]


def not_falling(run: Run) -> Verdict:
    """The loss is where it was at the beginning."""
    name = main_curve(run, "train")
    points, _ = run.curve(name)
    if len(points) < POINTS:
        return unknown("falling loss", f"{name} has {len(points)} points, {POINTS} are needed")
    first, last = ends(points, first=0.01)
    seen = f"{name} went from {first:.4g} to {last:.4g} in {points[-1][0] + 1} steps"
    if first <= 0 or last < FALLS * first:
        return fine("falling loss", seen)
    if run.learns_latents and run.setting("first_stage.run") is not None:
        return unknown("falling loss", f"{seen}; what was trained before may begin near its end")
    return wrong(
        "loss not falling",
        seen,
        "nothing is being learned",
        lower_lr(run),
        f"or optim.lr={10 * float(run.setting('optim.lr', 1e-4)):.0e}, if the curve is flat rather than rough",
    )


def warming_up(run: Run) -> Verdict | None:
    """The learning rate still rises, or has risen for most of the run."""
    warmup, most = run.setting("learning_rate.warmup", 0), run.setting("trainer.max_steps", -1)
    if warmup <= 0 or most <= 0:
        return None
    seen = f"the learning rate rises for {warmup} of {most} steps, to {float(run.setting('optim.lr', 1e-4)):.0e}"
    if warmup <= RISE * most:
        return fine("rise of the learning rate", seen)
    return wrong(
        "learning rate rises for most of the run",
        seen,
        "at a small rate little is learned: a second stage then draws speckle, though its loss falls",
        f"trainer.max_steps={10 * warmup}, or more",
        f"learning_rate.warmup={most // 10}",
    )


def blank_pictures(run: Run) -> Verdict | None:
    """A first stage whose reconstructions hardly resemble the pictures."""
    psnr = run.last("val/psnr")
    if not run.learns_latents or psnr is None or psnr.step < EARLY:
        return None
    seen = f"val/psnr is {psnr.value:.1f} dB @{psnr.n} (step {psnr.step})"
    if psnr.value >= BLANK:
        return fine("reconstructions", seen)
    return wrong(
        "pictures are not reconstructed",
        seen,
        f"below {BLANK:.0f} dB little more than the mean picture is right; no second stage is better than its first",
        "look first at the other findings",
        lower_lr(run),
        "more latent channels, or a smaller factor, such as first_stage=kl_f4",
    )


def overfitting(run: Run) -> Verdict:
    """Validation gets worse while training still gets better."""
    name, train = main_curve(run, "val"), main_curve(run, "train")
    points, _ = run.curve(name)
    if len(points) < 3:
        return unknown("generalization", f"{name} has {len(points)} points, 3 are needed")
    (best_step, best), (step, last) = min(points, key=lambda one: one[1]), points[-1]
    known, _ = run.curve(train)
    then = [value for at, value in known if at <= best_step][-POINTS:]
    now = [value for _, value in known][-POINTS:]
    seen = f"{name} is {last:.4g} at step {step + 1}, its best was {best:.4g} at step {best_step + 1}"
    learning = bool(then) and sum(now) / len(now) < sum(then) / len(then)
    if best <= 0 or last <= RISES * best or not learning:
        return fine("generalization", seen)
    return wrong(
        "overfitting",
        f"{seen}, while {train} still fell",
        "the model learns its training pictures by heart",
        "ldm finish run=... writes the model of the best validation, RUN/best",
        f"trainer.max_steps={best_step + 1}: stop earlier",
        "data.transform.flip=true, if mirror images are pictures of the same kind",
        "more pictures, or a smaller network",
    )


def not_validated(run: Run) -> Verdict:
    """No validation has taken place."""
    if any(name.startswith("val/") for name in run.curves):
        points = max((p for name, p in run.curves.items() if name.startswith("val/")), key=lambda p: p[-1][0])
        return fine("validation", f"{len(points)} validations, the last at step {points[-1][0] + 1}")
    every, most = run.setting("trainer.val_check_interval"), run.setting("trainer.max_steps", -1)
    batches = int(run.setting("trainer.accumulate_grad_batches", 1))
    late = isinstance(every, int) and 0 < most * batches < every
    if not late and isinstance(every, int) and run.steps * batches < every:
        return unknown("validation", f"none yet by step {run.steps}, the first comes after {every} batches")
    return wrong(
        "never validated",
        f"no val/ figure in metrics.csv by step {run.steps}; trainer.val_check_interval={every}",
        "without one nobody knows how it does on pictures it has not seen, and no best checkpoint is kept",
        f"trainer.val_check_interval={max(1, (most if most > 0 else run.steps) * batches // 10)}",
        "data.validation=0.05, if no pictures were kept for it",
    )


def not_finished(run: Run) -> Verdict:
    """The run has stopped before its end."""
    most = run.setting("trainer.max_steps", -1)
    seen = f"step {run.steps} of {most}"
    if run.setting("source") is not None:
        return fine("imported", f"from {run.setting('source')}, not trained here")
    if run.finished:
        return fine("finished", seen)
    if run.running:
        return fine("in training just now", seen)
    if most < 0:
        return unknown("finished", f"{seen}: its end is not counted in steps")
    return wrong(
        "not finished",
        f"{seen}, and no command is at work in the folder",
        "the learning rate has not come to its end, so the figures are not yet what this run can reach",
        "the same command goes on from the last checkpoint"
        if run.resumable
        else "the same command; there is no checkpoint yet, so it starts again",
    )
