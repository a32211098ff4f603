"""Checks of the game between autoencoder and discriminator."""

from __future__ import annotations

from ldm_lightning.diagnosis.run import Points, Run, ends
from ldm_lightning.diagnosis.verdict import Verdict, fine, unknown, wrong

__all__ = ["adversary_silent", "discriminator_losing", "discriminator_winning", "weight_at_cap", "worse_after_join"]

WINS = 0.95  # accuracy: the verdict has next to no gradient left
TEACHES = 1.0  # weight of the matched features beside the verdict, from which on they are the larger part of it
LOSES = 0.53  # accuracy; 0.5 is guessing
POINTS = 6  # logged since the autoencoder listens, to judge the game
AT_CAP = 0.99  # of the cap
WORSE = 1.25  # times the reconstruction error before: some is the price of sharpness, this is 2 dB

_NODE = "first_stage.adversary"


def _since_join(run: Run, name: str) -> Points:
    """The later half of a curve since the autoencoder listens."""
    points = [point for point in run.curve(name)[0] if point[0] >= run.setting(f"{_NODE}.join", 0)]
    return points[len(points) // 2 :] if len(points) >= POINTS else []


def _mean(points: Points) -> float:
    return sum(value for _, value in points) / len(points)


def _accuracy(points: Points) -> tuple[float, str]:
    """Mean accuracy, and words for it."""
    accuracy = _mean(points)
    return accuracy, f"train/discriminator/accuracy is {accuracy:.1%} since step {points[0][0] + 1}"


def _lr(run: Run) -> float:
    """The discriminator's learning rate."""
    return float(run.setting(f"{_NODE}.optimizer.lr", run.setting("optim.lr", 1e-4)))


def discriminator_winning(run: Run) -> Verdict | None:
    """The discriminator knows nearly every reconstruction, so that it teaches nothing."""
    if run.setting(_NODE) is None:
        return None
    points = _since_join(run, "train/discriminator/accuracy")
    if not points:
        return unknown("the game", f"fewer than {POINTS} points since first_stage.adversary.join")
    accuracy, seen = _accuracy(points)
    if accuracy < WINS:
        return fine("the game", seen)
    if float(run.setting(f"{_NODE}.matching", 0)) >= TEACHES:
        return fine("the game", f"{seen}, but its features are matched, which still teach")
    term = [point for point in run.curve("train/adversarial")[0] if point[0] >= points[0][0]]
    if term:
        seen += "; train/adversarial went from {:.3g} to {:.3g}".format(*ends(term))
    lr = _lr(run)
    join, start = int(run.setting(f"{_NODE}.join")), int(run.setting(f"{_NODE}.start"))
    return wrong(
        "discriminator winning",
        seen,
        "one that is never wrong gives the autoencoder no direction, and pushes it to artefacts",
        f"{_NODE}.optimizer.lr={lr / 4:.1e}: now {lr:.1e}",
        f"{_NODE}.matching=10: its features still say where and how a reconstruction differs",
        f"{_NODE}.start={2 * start} {_NODE}.join={2 * join}: later, against better reconstructions",
        f"{_NODE}.r1={max(1.0, 10 * float(run.setting(f'{_NODE}.r1', 0)))}, or {_NODE}.lecam=0.1 for little data",
        f"{_NODE}.weight={float(run.setting(f'{_NODE}.weight', 0.5)) / 2:g}",
    )


def weight_at_cap(run: Run) -> Verdict | None:
    """The adaptive weight is as large as it may be, since the discriminator's gradient has vanished."""
    cap = run.setting(f"{_NODE}.balance.cap")
    points = _since_join(run, "train/weight/adversarial")
    if cap is None or not points:
        return None
    full = float(run.setting(f"{_NODE}.weight")) * float(cap)
    share = sum(value >= AT_CAP * full for _, value in points) / len(points)
    seen = f"train/weight/adversarial is {points[-1][1]:.3g} at step {points[-1][0] + 1}, {full:.3g} at most"
    if share <= 0.5:
        return fine("the adaptive weight", seen)
    return wrong(
        "adaptive weight at its cap",
        f"{seen}, and there in {share:.0%} of the points",
        "the discriminator pulls at the decoder with next to no gradient, which is blown up to noise",
        f"{_NODE}.balance.cap={float(cap) / 100:g}",
        f"{_NODE}.r1=1.0: a smoother discriminator",
    )


def discriminator_losing(run: Run) -> Verdict | None:
    """The discriminator guesses."""
    points = _since_join(run, "train/discriminator/accuracy")
    if not points:
        return None
    accuracy, seen = _accuracy(points)
    if accuracy >= LOSES:
        return fine("what the discriminator knows", seen)
    lr = _lr(run)
    return wrong(
        "discriminator losing",
        f"{seen}, which is guessing",
        "either reconstructions are as good as pictures to it, which is the aim, or it is too weak to see the "
        "difference, and its term is noise: look at samples/",
        f"{_NODE}.optimizer.lr={4 * lr:.1e}: now {lr:.1e}",
        f"{_NODE}.discriminator.width={2 * int(run.setting(f'{_NODE}.discriminator.width', 64))}",
        f"{_NODE}.r1=0 {_NODE}.lecam=0, if they hold it back",
    )


def worse_after_join(run: Run) -> Verdict | None:
    """Reconstructions have become worse since the autoencoder listens."""
    join = run.setting(f"{_NODE}.join")
    points, _ = run.curve("val/reconstruction")
    before = [value for step, value in points if join is not None and step < join]
    after = [point for point in points if join is not None and point[0] >= join]
    if join is None or (not after and run.steps <= join):
        return None
    if not before or not after:
        return unknown("reconstructions under the adversary", f"no validation before and after step {join}")
    step, last = after[-1]
    seen = f"val/reconstruction is {last:.4g} at step {step + 1}, at best {min(before):.4g} before step {join}"
    if last <= WORSE * min(before):
        return fine("reconstructions under the adversary", seen)
    weight = float(run.setting(f"{_NODE}.weight", 0.5))
    return wrong(
        "reconstructions worse since the adversary is heard",
        seen,
        "a little is the price of sharpness; this much is lost content",
        f"{_NODE}.weight={weight / 4:g}: now {weight:g}",
        f"{_NODE}.ramp={4 * int(run.setting(f'{_NODE}.ramp', 5000))}: heard more gradually",
        f"{_NODE}.join={2 * int(join)}: later",
    )


def adversary_silent(run: Run) -> Verdict | None:
    """The run ends before the game begins."""
    join, most = run.setting(f"{_NODE}.join"), run.setting("trainer.max_steps", -1)
    if join is None or most < 0:
        return None
    if join < most:
        return fine("adversary heard", f"from step {join} of {most}")
    return wrong(
        "adversary never heard",
        f"first_stage.adversary.join={join}, but trainer.max_steps={most}",
        "the discriminator costs time and changes nothing",
        f"{_NODE}.start={most // 4} {_NODE}.join={most // 3} {_NODE}.ramp={max(1, most // 6)}",
        "or loss=l1_kl, without a discriminator",
    )
