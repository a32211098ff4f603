"""A class or function by its dotted name, found as Hydra finds it, with a message that helps where it is not."""

from __future__ import annotations

import sys
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from ldm_lightning.errors import UserError, first_line

__all__ = ["locate", "where"]


def locate(target: str) -> Any:
    """What ``target`` leads to: of every name an attribute of what is before it, else a module below that.

    Raises:
        UserError: nothing.
    """
    package, *names = target.split(".")
    try:
        made: Any = import_module(package)
        for number, name in enumerate(names, start=1):
            try:
                made = getattr(made, name)
            except AttributeError:
                made = import_module(".".join([package, *names[:number]]))
    except (ImportError, ValueError) as error:  # ValueError: of an empty name
        raise UserError(f"{target} cannot be imported: {first_line(error)}{where(target)}") from error
    return made


def where(target: str) -> str:
    """What a message should add if ``target`` lies in the current folder, where not every verb looks for modules."""
    package = target.partition(".")[0]
    here = Path(f"{package}.py").is_file() or Path(package).is_dir()
    found = package in sys.modules or find_spec(package) is not None
    return "; it lies in the current folder, so put PYTHONPATH=. before the command" if here and not found else ""
