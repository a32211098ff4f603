"""What a check answers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

__all__ = ["Verdict", "fine", "unknown", "wrong"]


@dataclass(frozen=True)
class Verdict:
    """The answer of one check; made by :func:`wrong`, :func:`fine` or :func:`unknown`.

    Attributes:
        subject: what was checked; of a finding, what is wrong.
        state: whether it is wrong, fine, or cannot be judged from what the folder holds.
        seen: the figures that say so, where and over how many samples; or what is missing.
        why: why it matters.
        change: what to change, the likeliest first, as overrides where that is possible.
    """

    subject: str
    state: Literal["wrong", "fine", "unknown"]
    seen: str
    why: str = ""
    change: tuple[str, ...] = ()


def wrong(subject: str, seen: str, why: str, *change: str) -> Verdict:
    """A finding."""
    return Verdict(subject, "wrong", seen, why, change)


def fine(subject: str, seen: str) -> Verdict:
    """Nothing wrong, by these figures."""
    return Verdict(subject, "fine", seen)


def unknown(subject: str, missing: str) -> Verdict:
    """Not to be judged, because something is missing."""
    return Verdict(subject, "unknown", missing)
