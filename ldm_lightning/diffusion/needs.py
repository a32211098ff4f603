"""What a part of a second stage needs of the others: declared by the part, checked before a run begins.

Samplers, predictions, likelihoods and terms of the loss say it as a class attribute, or a property where it depends on
a choice, ``needs``. A part that declares nothing is taken to fit anything.
"""

from __future__ import annotations

from dataclasses import dataclass

from ldm_lightning.diffusion.path import Path
from ldm_lightning.errors import UserError

__all__ = ["Needs", "check_path", "is_for", "needs_of"]


@dataclass(frozen=True)
class Needs:
    """What one part needs.

    Attributes:
        paths: the kinds of path it is written for; empty for any.
        variance: a model that learns the variance of its steps.
        memoryless: answers that depend on z and t alone, which those of a self-conditioned model do not.
    """

    paths: tuple[type, ...] = ()
    variance: bool = False
    memoryless: bool = False


def needs_of(part: object) -> Needs:
    """What ``part`` declares; nothing by default."""
    needs: Needs = getattr(part, "needs", Needs())
    return needs


def is_for(part: object, path: Path) -> bool:
    """Whether ``part`` is written for ``path``."""
    kinds = needs_of(part).paths
    return not kinds or isinstance(path, kinds)


def check_path(group: str, part: object, path: Path) -> None:
    """Refuse what is not written for ``path``.

    Args:
        group: the configuration group it is chosen by, such as "sampler".
        part: declares its :class:`Needs`.
        path: the path at hand.

    Raises:
        UserError: it is for other paths.
    """
    if is_for(part, path):
        return
    wanted = " or ".join(kind.__name__ for kind in needs_of(part).paths)
    mend = f": choose {group}={path.suits[group]}, or another path" if group in path.suits else ""
    raise UserError(f"{group}: {type(part).__name__} is for a {wanted}, but the path is a {type(path).__name__}{mend}")
