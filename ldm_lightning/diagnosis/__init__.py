"""What looks wrong in a run, and what to change: pure functions from a :class:`Run` to a :class:`Verdict`.

A check is one short function, listed below; it answers None where it does not apply, such as dead codes where there is
no book. Thresholds are named constants beside it, each with its reason. They are meant to be passed by every run that
is merely imperfect: what is called wrong should be worth a look. To add a finding is to add a function.
"""

from ldm_lightning.diagnosis.adversary import (
    adversary_silent,
    discriminator_losing,
    discriminator_winning,
    weight_at_cap,
    worse_after_join,
)
from ldm_lightning.diagnosis.codes import dead_codes
from ldm_lightning.diagnosis.course import (
    blank_pictures,
    diverging,
    not_falling,
    not_finished,
    not_finite,
    not_validated,
    overfitting,
    warming_up,
)
from ldm_lightning.diagnosis.latents import collapsed_channels, exploding_scale, fine_detail, not_standardized
from ldm_lightning.diagnosis.run import Figure, Run, Trial
from ldm_lightning.diagnosis.samples import few_to_validate, speckle
from ldm_lightning.diagnosis.verdict import Verdict

__all__ = ["CHECKS", "Figure", "Run", "Trial", "Verdict", "diagnose"]

CHECKS = (
    not_finite,
    diverging,
    not_falling,
    warming_up,
    overfitting,
    collapsed_channels,
    exploding_scale,
    fine_detail,
    not_standardized,
    speckle,
    dead_codes,
    discriminator_winning,
    weight_at_cap,
    discriminator_losing,
    worse_after_join,
    adversary_silent,
    blank_pictures,
    not_validated,
    few_to_validate,
    not_finished,
)


def diagnose(run: Run) -> list[Verdict]:
    """The verdicts of all checks that apply, in the order of :data:`CHECKS`."""
    return [verdict for check in CHECKS if (verdict := check(run)) is not None]
