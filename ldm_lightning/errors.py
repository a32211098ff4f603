"""The one exception for mistakes a user can mend.

Every room may raise it. The command line prints its message as one line, without a traceback, and exits with
code 2; anything else that escapes is a defect of ours and keeps its traceback.
"""

from __future__ import annotations

import difflib
import errno
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

__all__ = [
    "DiskFull",
    "UserError",
    "causes",
    "first_line",
    "is_disk_full",
    "nearest",
    "needs_extra",
    "no_such_place",
    "room_for",
]


class UserError(ValueError):
    """A mistake in data, configuration or environment: the message names the cause and the mend."""


class DiskFull(OSError):
    """No room, or no quota, for a file: its path, the bytes it needs where they are known, and the bytes free."""


@contextmanager
def room_for(path: Path, needed: int | None = None) -> Iterator[None]:
    """Say which file it was when what is written here finds no room; any other error passes.

    Writing alone does not tell: the system's error names no file, and ``torch.save`` hides it behind one of its own.

    Args:
        path: the file or folder being written.
        needed: its bytes, when they are known.

    Raises:
        DiskFull: in place of an error that was caused by a full disk.
    """
    try:
        yield
    except (OSError, RuntimeError) as error:
        full = next(filter(is_disk_full, causes(error)), None)
        if full is None or isinstance(full, DiskFull):
            raise
        assert isinstance(full, OSError)
        place = next(place for place in path.absolute().parents if place.is_dir())
        needs = "" if needed is None else f"it needs {needed:,} bytes, and "
        message = f"{full.strerror}: {needs}{shutil.disk_usage(place).free:,} bytes are free"
        raise DiskFull(full.errno, message, str(path)) from error


def is_disk_full(error: BaseException) -> bool:
    """Whether this is the system's error for a full disk or a used-up quota."""
    return isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)


def causes(error: BaseException | None) -> Iterator[BaseException]:
    """The error itself, the one that it was raised from, and so on."""
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


def no_such_place(key: str, place: str | Path) -> UserError:
    """Return the error for a file or folder that is not there, naming the ``key`` that names it."""
    return UserError(f"{key}={place} does not exist; check its spelling (relative to {Path.cwd()})")
