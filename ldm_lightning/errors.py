"""The one exception for mistakes a user can mend.

Every room may raise it. The command line prints its message as one line, without a traceback, and exits with
code 2; anything else that escapes is a defect of ours and keeps its traceback.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator

__all__ = ["UserError", "causes", "first_line", "nearest", "needs_extra"]


class UserError(ValueError):
    """A mistake in data, configuration or environment: the message names the cause and the mend."""


def causes(error: BaseException | None) -> Iterator[BaseException]:
    """Yield ``error`` and what it comes of, the root cause last."""
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def first_line(error: BaseException) -> str:
    """Return the first line that an error of another library says, or its type's name when it says nothing."""
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)


def nearest(word: str, candidates: Iterable[str]) -> str:
    """Return ``"; did you mean 'x'?"`` for the candidate closest to ``word``, or ``""`` when none is close."""
    close = difflib.get_close_matches(word, list(candidates), n=1, cutoff=0.5)
    return f"; did you mean '{close[0]}'?" if close else ""


def needs_extra(package: str, extra: str) -> UserError:
    """Return the error for a missing optional ``package``, naming the ``extra`` that brings it."""
    return UserError(f"{package} is not installed; install it with: pip install 'ldm_lightning[{extra}]'")
