"""A verb's arguments as they were typed, or as a sweep agent wrote them, taken apart into what Hydra wants separate.

``wandb agent`` writes ``--optim.lr=0.1``, and nested settings as Python prints them, ``--trainer={'max_steps': 5}``.
Both are read as the overrides that they mean.
"""

from __future__ import annotations

import argparse
import ast
import re
from collections.abc import Iterator
from typing import Any, NoReturn

from hydra._internal.utils import get_args_parser
from hydra.core.override_parser.types import Quote, QuotedString

from ldm_lightning.errors import UserError

__all__ = ["split_arguments"]

_ASSIGNMENT = re.compile(r"(--)?([+~]{0,2}[\w./@:]+)=(.*)", re.DOTALL)


def split_arguments(arguments: list[str]) -> tuple[list[str], list[str]]:
    """A verb's arguments, in whatever order they are given, as overrides and flags: Hydra wants them unmixed.

    Raises:
        UserError: there is no such flag, or an override has no key.
    """

    def refuse(message: str) -> NoReturn:
        raise UserError(f"{message}; see --help and --hydra-help")

    parser = get_args_parser()
    parser.error = refuse  # type: ignore[method-assign]
    arguments = [plain for text in arguments for plain in _as_hydra(text, parser)]
    known = parser.parse_intermixed_args(arguments)
    if known.cfg == "hydra" and known.resolve:  # Hydra cuts its own settings out first, and they refer to the others
        raise UserError("Hydra's own settings refer to the verb's: use --cfg all --resolve, or leave out --resolve")
    overrides: list[str] = known.overrides
    flags = list(arguments)
    for text in overrides:
        flags.remove(text)
        if text.startswith("="):
            raise UserError(f"cannot read '{text}': write key=value")
    return overrides, flags


def _as_hydra(text: str, parser: argparse.ArgumentParser) -> Iterator[str]:
    """One argument as Hydra spells it: itself, unless it has dashes before a key, or a dictionary as of Python."""
    match = _ASSIGNMENT.fullmatch(text)
    if match is None or (match[1] and _is_flag(f"--{match[2]}", parser)):
        yield text
        return
    dashes, key, value = match.groups()
    read = _python(value)
    if isinstance(read, dict) and read:
        yield from (f"{name}={_hydra(part)}" for name, part in _leaves(read, key))
    elif dashes and (read is None or isinstance(read, list)):
        yield f"{key}={_hydra(read)}"  # what yaml and Hydra call null is None to Python
    else:
        yield f"{key}={value}"


def _is_flag(name: str, parser: argparse.ArgumentParser) -> bool:
    """Whether Hydra has a flag of this name that takes a value; ``--run`` takes none, and is a key of verbs."""
    return any(name in action.option_strings for action in parser._actions if action.nargs != 0)


def _python(value: str) -> Any:
    """What Python reads there; the text itself where it is no literal."""
    try:
        return ast.literal_eval(value.strip())
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return value


def _leaves(node: dict[Any, Any], key: str) -> Iterator[tuple[str, Any]]:
    """The values below ``key``, by their full keys: ``data=`` chooses a file, and ``data.size=`` sets a value."""
    for name, value in node.items():
        if isinstance(value, dict) and value:
            yield from _leaves(value, f"{key}.{name}")
        else:
            yield f"{key}.{name}", value


def _hydra(value: Any) -> str:
    """A value in Hydra's grammar."""
    if value is None:
        return "null"
    if isinstance(value, dict):
        return "{" + ",".join(f"{key}:{_hydra(part)}" for key, part in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ",".join(map(_hydra, value)) + "]"
    if isinstance(value, str):
        return QuotedString(value, Quote.double).with_quotes()
    return str(value)
