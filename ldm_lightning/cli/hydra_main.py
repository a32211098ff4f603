"""Hydra around a verb: where the configuration lies, how mistakes are reported, what child processes see."""

from __future__ import annotations

import errno
import importlib
import keyword
import os
import re
import shlex
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import hydra
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import (
    ConfigCompositionException,
    HydraException,
    InstantiationException,
    MissingConfigException,
    OverrideParseException,
)
from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import ConfigAttributeError, ConfigKeyError, MissingMandatoryValue, OmegaConfBaseException
from yaml import YAMLError  # type: ignore[import-untyped]

from ldm_lightning.cli.arguments import split_arguments
from ldm_lightning.cli.places import check_places
from ldm_lightning.cli.sweep import Failures, is_sweep
from ldm_lightning.errors import UserError, causes, first_line, is_disk_full, nearest
from ldm_lightning.experiment.compose import compose, conf_dir
from ldm_lightning.experiment.stages import STAGES
from ldm_lightning.experiment.trainer_rules import check_trainer
from ldm_lightning.experiment.trust import trusting

__all__ = ["explain", "run"]

_PLACES = {"run", "runs", "root", "output", "pictures", "source"}  # keys of verbs that name files
_BUILDERS = ("train", "import", "benchmark")  # verbs that build what their own command line names
# Hydra's own plugins, by what chooses them.
_PLUGINS = {
    "launcher=joblib": "hydra-joblib-launcher",
    "launcher=submitit_local": "hydra-submitit-launcher",
    "launcher=submitit_slurm": "hydra-submitit-launcher",
    "launcher=ray": "hydra-ray-launcher",
    "launcher=rq": "hydra-rq-launcher",
    "sweeper=ax": "hydra-ax-sweeper",
    "sweeper=nevergrad": "hydra-nevergrad-sweeper",
    "sweeper=optuna": "hydra-optuna-sweeper",
}

# The run folder is ours, so Hydra's own folders, copies of the configuration and log files are off.
_HYDRA_OVERRIDES = [
    "hydra.run.dir=.",
    "hydra.sweep.subdir=.",
    "hydra.output_subdir=null",
    "hydra/job_logging=none",
    "hydra/hydra_logging=none",
    "+hydra.callbacks.keep_multirun._target_=ldm_lightning.cli.multirun.KeepMultirun",
    "+hydra.callbacks.begin._target_=ldm_lightning.cli.sweep.Begin",
]


def _keys(verb: str) -> str:
    """The keys of ``conf/<verb>.yaml``, each with its default and the comment beside it, for ``--help``."""
    lines = (conf_dir() / f"{verb}.yaml").read_text().partition("\nhydra:")[0].splitlines()
    found = (re.match(r"(?:  - )?(\w+): (\S+) ?(?:# (.*))?$", line) for line in lines)
    text = "\n".join(f"  {f'{key[1]}={key[2]}':20} {key[3] or ''}".rstrip() for key in found if key)
    return text.replace("$", "$$")  # Hydra fills in what follows a single one


def _groups() -> str:
    """All groups with their options, those of ``--config-dir`` as well, for ``--help``."""
    running = GlobalHydra.instance().hydra
    assert running is not None  # it is Hydra that asks
    listing = running.format_config_groups(lambda group: group.split("/")[0] != "hydra")
    lines = (line.partition(": ") for line in listing.splitlines())
    text = "\n".join(f"{group}: {', '.join(_folded(options.split(', ')))}" for group, _, options in lines)
    return text.replace("$", "$$")


def _folded(options: Sequence[str]) -> Iterator[str]:
    """``options``, where sizes of one thing are one entry, such as ``kl_f4[_tiny|_large]``."""
    for option in options:
        if option.removesuffix("_tiny").removesuffix("_large") not in {*options} - {option}:
            sizes = "|".join(size for size in ("_tiny", "_large") if f"{option}{size}" in options)
            yield f"{option}[{sizes}]" if sizes else option


def run(verb: str) -> None:
    """Compose ``conf/<verb>.yaml`` with the command line's overrides and call the verb's ``main``.

    Exits with code 2 and one line for a mistake of the user's; defects of ours keep their traceback. Of a sweep, all
    jobs run, whatever becomes of one, and then those that failed are listed.
    """
    original, arguments = list(sys.argv), sys.argv[2:]
    failures = Failures(verb, lambda error: explain(error, verb, arguments))

    def job(config: DictConfig) -> Any:
        sys.argv = original  # Lightning starts the other ranks by repeating this command line
        result = None  # of a job of a sweep that failed
        with failures.noted() if is_sweep() else _mistakes_explained(verb, arguments):
            _check_given(verb, config)
            check_places(verb, config)
            if "trainer" in config:
                check_trainer(config.trainer)
            with trusting(_take_trust(config)), _own_modules(verb):
                result = _task(verb)(config)
        return result

    # Let Hydra pass exceptions on instead of printing and exiting by itself.
    os.environ["HYDRA_FULL_ERROR"] = "1"
    OmegaConf.register_new_resolver("ldm_keys", _keys, replace=True)
    OmegaConf.register_new_resolver("ldm_groups", _groups, replace=True)
    try:
        with _mistakes_explained(verb, arguments):
            overrides, flags = split_arguments(arguments)
            sys.argv = [f"ldm {verb}", *_HYDRA_OVERRIDES, *overrides, *flags]
            with failures.listed():
                hydra.main(config_path=str(conf_dir()), config_name=verb, version_base="1.3")(job)()
    finally:
        sys.argv = original


def _task(verb: str) -> Callable[[DictConfig], Any]:
    """The verb itself; importing it takes seconds, mostly torch's, which cheap refusals and ``--help`` do without."""
    module = f"{verb}_" if keyword.iskeyword(verb) else verb
    task: Callable[[DictConfig], Any] = importlib.import_module(f"ldm_lightning.cli.{module}").main
    return task


def _check_given(verb: str, config: DictConfig) -> None:
    """Refuse null for a key that the verb's yaml leaves to the user, and a number for a place."""
    own, given = OmegaConf.load(conf_dir() / f"{verb}.yaml"), OmegaConf.to_container(config)
    assert isinstance(given, dict)
    for key in _PLACES & {*map(str, own)}:
        if isinstance(given[key], int | float):
            raise UserError(f"{key}={given[key]} is read as a number: write {key}=./{given[key]}")
    for key in map(str, own):
        if OmegaConf.is_missing(own, key) and not OmegaConf.is_missing(config, key) and config[key] is None:
            raise UserError(f"{key}=null says nothing: give {key} a value")


def _take_trust(config: DictConfig) -> Any:
    """The packages that the command line trusts, taken out: they are the command's affair, not the run's."""
    if "trust" not in config:
        return None
    trust = config.trust
    with open_dict(config):
        del config["trust"]
    return trust


@contextmanager
def _own_modules(verb: str) -> Iterator[None]:
    """Find modules of the user's own in the current folder, but not for a verb that reads what others may have made.

    Not before Hydra has started, which would take plugins from there.
    """
    if verb not in _BUILDERS:
        yield
        return
    sys.path.append("")
    try:
        yield
    finally:
        sys.path.remove("")


@contextmanager
def _mistakes_explained(verb: str, arguments: list[str]) -> Iterator[None]:
    try:
        yield
    except Exception as error:
        message = explain(error, verb, arguments)
        if message is None:
            raise
        print(f"ldm {verb}: {message}", file=sys.stderr)
        raise SystemExit(2) from None


def explain(error: BaseException, verb: str, arguments: list[str]) -> str | None:
    """One line with cause and mend for a mistake of the user's; None for anything else."""
    chain = list(causes(error))
    for kind, describe in _DESCRIPTIONS.items():
        for cause in chain:
            if isinstance(cause, kind) and (message := describe(cause)) is not None:
                return message
    if full := next(filter(is_disk_full, chain), None):
        return _disk_full(full)
    if isinstance(error, ConfigCompositionException):
        return _unknown_key(error, verb, split_arguments(arguments)[0])
    if isinstance(error, InstantiationException):
        # A _target_ that is not there, a value of the wrong type, an argument that a constructor does not have.
        known = isinstance(chain[-1], TypeError | ImportError | AttributeError) or len(chain) == 1
        return " ".join(str(error).split()) if known else None
    if isinstance(error, ConfigAttributeError | ConfigKeyError) and error.full_key:
        return (
            f"the configuration has no {error.full_key}: if it is a run's, its config.yaml or manifest.json was edited"
        )
    return first_line(error) if isinstance(error, HydraException | OmegaConfBaseException) else None


def _disk_full(error: BaseException) -> str:
    assert isinstance(error, OSError)
    place = f"{error.filename} cannot be written" if error.filename else "nothing more can be written"
    return f"{place} ({error.strerror}): make room and repeat the command, which loses nothing"


def _too_long(error: OSError) -> str | None:
    """For a name or path that no file system takes, wherever it came up; None for all other errors of a file system."""
    if error.errno != errno.ENAMETOOLONG:
        return None
    longest = max(Path(str(error.filename)).parts, key=len, default="")
    return f"{longest[:40]}... has {len(os.fsencode(longest))} bytes, too many for a file's name: give a shorter one"


def _missing_option(error: MissingConfigException) -> str:
    group, _, option = str(error.missing_cfg_file).rpartition("/")
    options = list(error.options or [])
    if package := _PLUGINS.get(f"{group.removeprefix('hydra/')}={option}"):
        return f"{group}={option} is of a package that is not installed: pip install {package}"
    if not options:
        return first_line(error)
    return f"there is no {group}={option}{nearest(option, options)} (options: {', '.join(options)})"


def _unknown_key(error: ConfigCompositionException, verb: str, overrides: list[str]) -> str:
    match = re.search(r"[Cc]ould not override '([^']+)'", str(error))
    if match is None:
        text = " ".join(str(error).split())
        if several := re.match(r"Ambiguous value for argument '(.*?)' 1\. ", text):
            return f"'{several[1]}' has several values: {_quoted(several[1])} for one, or add --multirun for a sweep"
        return text
    key, root = match.group(1), re.split(r"[./@]", match.group(1))[0]
    known = _known_keys(verb, key, overrides)
    for stage in STAGES if verb == "train" and (key in known or root not in known) else ():
        given = [text for text in overrides if text.startswith(f"{key}=")]
        if root in _known_keys(verb, key, [f"stage={stage}"]) or (
            given and _composes(verb, [f"stage={stage}", *given])
        ):
            return f"'{key}' belongs to stage={stage}, which is not the stage of this command: add stage={stage}"
    for choice in (text for text in overrides if text.startswith(f"{root}=") and key != root):
        if key in _known_keys(verb, "", [text for text in overrides if text != choice]):
            return f"'{key}' does not go with {choice}: leave one of them out"
    if meant := re.search(r"Did you mean to override (\S+)\?", str(error)):  # a group that is used at another place
        mend = f": write {meant[1]}=..."
    elif (conf_dir() / key).is_dir():
        mend = " in this configuration, which uses nothing of that group; docs/configuration.md says what does"
    else:
        mend = nearest(key, known)
    return f"there is no configuration key '{key}'{mend}"


def _composes(verb: str, overrides: list[str]) -> bool:
    try:
        compose(verb, overrides)
    except ConfigCompositionException:
        return False
    return True


def _known_keys(verb: str, unknown: str, overrides: list[str]) -> list[str]:
    """Every key of the configuration that the overrides compose to, the mistaken ones left out."""
    usable = overrides
    while True:
        usable = [text for text in usable if re.split("[=+~@]", text.lstrip("+~"))[0] != unknown]
        try:
            return list(_flat(OmegaConf.to_container(compose(verb, usable), resolve=False)))
        except ConfigCompositionException as other:
            match = re.search(r"[Cc]ould not override '([^']+)'", str(other))
            if match is None or match.group(1) == unknown:
                return []
            unknown = match.group(1)


def _flat(node: Any, prefix: str = "") -> Iterator[str]:
    for key, value in node.items():
        yield f"{prefix}{key}"
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{key}.")


def _missing_value(error: MissingMandatoryValue) -> str:
    key = str(error.full_key or error).split()[-1]
    return f"{key} has no value yet: add {key}=..."


def _quoted(override: str) -> str:
    """The mend for an override that Hydra's grammar cannot read, ready to be pasted into a shell."""
    key, equals, value = override.partition("=")
    escaped = value.replace("\\", "\\\\").replace('"', '\\"')
    mended = f'{key}="{escaped}"'
    try:
        OverridesParser.create().parse_override(mended)
    except OverrideParseException:
        equals = ""
    return f"write {shlex.quote(mended)}" if equals else "write key=value"


def _parse_error(error: OverrideParseException) -> str:
    return f"cannot read '{error.override}': {_quoted(str(error.override))}"


_DESCRIPTIONS: dict[type[BaseException], Callable[[Any], str | None]] = {
    UserError: str,
    MissingConfigException: _missing_option,
    MissingMandatoryValue: _missing_value,
    OverrideParseException: _parse_error,
    YAMLError: lambda error: f"cannot read the yaml: {' '.join(str(error).split())}; mend it there",
    OSError: _too_long,
}
