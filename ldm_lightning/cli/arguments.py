"""A verb's arguments as they were typed, taken apart into what Hydra wants separate."""

from __future__ import annotations

import re
from typing import NoReturn

from hydra._internal.utils import get_args_parser

from ldm_lightning.errors import UserError

__all__ = ["split_arguments"]

_DASHED = re.compile(r"--([+~]{0,2}[\w./@:]+)=")


def split_arguments(arguments: list[str]) -> tuple[list[str], list[str]]:
    """A verb's arguments, in whatever order they are given, as overrides and flags: Hydra wants them unmixed.

    ``--key=value``, as ``wandb agent`` writes it, is the override ``key=value``, unless Hydra has such a flag.

    Raises:
        UserError: there is no such flag, or an override has no key.
    """

    def refuse(message: str) -> NoReturn:
        raise UserError(f"{message}; see --help and --hydra-help")

    parser = get_args_parser()
    parser.error = refuse  # type: ignore[method-assign]
    valued = {name for action in parser._actions if action.nargs != 0 for name in action.option_strings}
    arguments = [
        text[2:] if (dashed := _DASHED.match(text)) and f"--{dashed[1]}" not in valued else text for text in arguments
    ]
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
