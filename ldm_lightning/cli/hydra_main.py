"""Hydra around a verb: where the configuration lies, how mistakes are reported, what child processes see."""

from __future__ import annotations

import importlib
import os
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import hydra
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import (
    ConfigCompositionException,
    HydraException,
    InstantiationException,
    MissingConfigException,
    OverrideParseException,
)
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import MissingMandatoryValue, OmegaConfBaseException

from ldm_lightning.errors import UserError, nearest

__all__ = ["conf_dir", "explain", "run"]

# The run folder is ours, so Hydra's own folders, copies of the configuration and log files are off.
_HYDRA_OVERRIDES = [
    "hydra.run.dir=.",
    "hydra.sweep.subdir=.",
    "hydra.output_subdir=null",
    "hydra/job_logging=none",
    "hydra/hydra_logging=none",
]


def conf_dir() -> Path:
    """Absolute path of the shipped configuration: inside an installed package, or at the top of a checkout."""
    package = Path(__file__).resolve().parents[1]
    return package / "conf" if (package / "conf").is_dir() else package.parent / "conf"


def run(verb: str) -> None:
    """Compose ``conf/<verb>.yaml`` with the command line's overrides and call the verb's ``main``.

    Exits with code 2 and one line for a mistake of the user's; defects of ours keep their traceback.
    """
    original, overrides = list(sys.argv), sys.argv[2:]
    sys.path.append("")  # a _target_ of the user's own may lie in the current folder
    task: Callable[[DictConfig], Any] = importlib.import_module(f"ldm_lightning.cli.{verb}").main

    def job(config: DictConfig) -> Any:
        sys.argv = original  # Lightning starts the other ranks by repeating this command line
        with _mistakes_explained(verb, overrides):
            return task(config)

    # Let Hydra pass exceptions on instead of printing and exiting by itself.
    os.environ["HYDRA_FULL_ERROR"] = "1"
    # Hydra's parser wants all overrides in one place, so ours go right before the user's first.
    place = next((number for number, text in enumerate(overrides) if "=" in text), len(overrides))
    sys.argv = [f"ldm {verb}", *overrides[:place], *_HYDRA_OVERRIDES, *overrides[place:]]
    try:
        with _mistakes_explained(verb, overrides):
            hydra.main(config_path=str(conf_dir()), config_name=verb, version_base="1.3")(job)()
    finally:
        sys.argv = original


@contextmanager
def _mistakes_explained(verb: str, overrides: list[str]) -> Iterator[None]:
    try:
        yield
    except Exception as error:
        message = explain(error, verb, overrides)
        if message is None:
            raise
        print(f"ldm {verb}: {message}", file=sys.stderr)
        raise SystemExit(2) from None


def explain(error: BaseException, verb: str, overrides: list[str]) -> str | None:
    """One line with cause and mend for a mistake of the user's; None for anything else."""
    chain = list(_causes(error))
    for kind, describe in _DESCRIPTIONS.items():
        for cause in chain:
            if isinstance(cause, kind):
                return describe(cause)
    if isinstance(error, ConfigCompositionException):
        return _unknown_key(error, verb, overrides)
    if isinstance(error, InstantiationException):
        # A _target_ that is not there, a value of the wrong type, an argument that a constructor does not have.
        known = isinstance(chain[-1], TypeError | ImportError | AttributeError) or len(chain) == 1
        return " ".join(str(error).split()) if known else None
    return _first_line(error) if isinstance(error, HydraException | OmegaConfBaseException) else None


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _first_line(error: BaseException) -> str:
    return next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)


def _missing_option(error: MissingConfigException) -> str:
    group, _, option = str(error.missing_cfg_file).rpartition("/")
    options = list(error.options or [])
    if not options:
        return _first_line(error)
    return f"there is no {group}={option}{nearest(option, options)} (options: {', '.join(options)})"


def _unknown_key(error: ConfigCompositionException, verb: str, overrides: list[str]) -> str:
    match = re.search(r"[Cc]ould not override '([^']+)'", str(error))
    if match is None:
        return " ".join(str(error).split())
    key = match.group(1)
    return f"there is no configuration key '{key}'{nearest(key, _known_keys(verb, key, overrides))}"


def _known_keys(verb: str, unknown: str, overrides: list[str]) -> list[str]:
    """Every key of the configuration that the overrides compose to, the mistaken ones left out."""
    usable = [text for text in overrides if text.startswith("~") or ("=" in text and not text.startswith("-"))]
    while True:
        usable = [text for text in usable if re.split("[=+~@]", text.lstrip("+~"))[0] != unknown]
        try:
            with hydra.initialize_config_dir(str(conf_dir()), version_base="1.3"):
                return list(_flat(OmegaConf.to_container(hydra.compose(verb, usable), resolve=False)))
        except ConfigCompositionException as other:
            match = re.search(r"[Cc]ould not override '([^']+)'", str(other))
            if match is None or match.group(1) == unknown:
                return []
            unknown = match.group(1)
        finally:
            GlobalHydra.instance().clear()


def _flat(node: Any, prefix: str = "") -> Iterator[str]:
    for key, value in node.items():
        yield f"{prefix}{key}"
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{key}.")


def _missing_value(error: MissingMandatoryValue) -> str:
    key = str(error.full_key or error).split()[-1]
    return f"{key} has no value yet: add {key}=..."


_DESCRIPTIONS: dict[type[BaseException], Callable[[Any], str]] = {
    UserError: str,
    MissingConfigException: _missing_option,
    MissingMandatoryValue: _missing_value,
    OverrideParseException: lambda error: (
        f"cannot read '{error.override}': write key=value, and quote values with spaces or commas"
    ),
}
