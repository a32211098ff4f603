"""The run folder: the log, the configuration it belongs to, and the rule that one folder holds one experiment."""

from __future__ import annotations

import fcntl
import logging
import os
import re
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from yaml import YAMLError  # type: ignore[import-untyped]

from ldm_lightning.artifact import check_keys, set_aside
from ldm_lightning.errors import UserError
from ldm_lightning.experiment.renamed import renamed
from ldm_lightning.experiment.stages import recorded
from ldm_lightning.output import Output

__all__ = [
    "SAME_COMMAND",
    "check_begun",
    "check_length",
    "check_place",
    "check_writable",
    "claim",
    "differences",
    "first_stage_of",
    "is_first_process",
    "lock",
    "output_folder",
    "read_config",
    "silence",
    "unlike_best",
    "write_log",
]

_LONGEST = 255  # bytes of a name, on nearly all file systems
_NOISE = (
    "litlogger",
    "GPU available: False",
    "TPU available: False",
    "does not have many workers",
    "is smaller than the logging interval",  # steps are counted across epochs
    "so validation will run after every batch",
)
SAME_COMMAND = "the same command goes on from the last checkpoint"

# What may change when a run goes on: where and how long it runs and what is shown, but not what is computed.
_FREE = (
    "name",  # a place, not a setting
    "run_dir",
    "runs",
    "logger",
    "callbacks.checkpoints",
    "callbacks.finite",
    "callbacks.gallery",
    "data.num_workers",
    "data.pictures",
    "data.pin_memory",
    "data.root",
    "data.source.encoding",
    "data.source.max_uncaptioned",
    "data.source.pictures.encoding",
    "data.source.pictures.max_uncaptioned",
    "data.source.pictures.path",
    "data.source.pictures.root",
    "data.source.root",
    "first_stage.run",
    "guidance.run",
    "resume",
    "source",  # of `ldm import`, which compares the weights themselves
    "subfolder",
    "trainer.accelerator",
    "trainer.devices",
    "trainer.enable_model_summary",
    "trainer.enable_progress_bar",
    "trainer.limit_val_batches",
    "trainer.log_every_n_steps",
    "trainer.max_epochs",
    "trainer.max_steps",
    "trainer.max_time",
    "trainer.num_nodes",
    "trainer.strategy",
    "trainer.val_check_interval",
)

# Free as well, but the best checkpoint so far was chosen by them.
_CHOOSES_BEST = ("trainer.limit_val_batches", "callbacks.checkpoints.monitor", "callbacks.checkpoints.mode")


def _flat(node: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(node, dict):
        for key, value in node.items():
            yield from _flat(value, f"{prefix}.{key}" if prefix else str(key))
    else:
        yield prefix, node


def differences(before: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """Lines ``key: before -> now`` for every setting that decides what is computed."""
    old, new = dict(_flat(before)), dict(_flat(now))
    keys = [key for key in {**old, **new} if not any(key == free or key.startswith(f"{free}.") for free in _FREE)]
    missing = "(not set)"
    return [
        f"{key}: {old.get(key, missing)} -> {new.get(key, missing)}"
        for key in keys
        if old.get(key) != new.get(key)  # null is how a later version writes what an older one did not know
    ]


def check_begun(folder: Path) -> None:
    """Check that ``folder`` holds a run, whatever it has come to.

    Raises:
        UserError: it does not.
    """
    mend = "give a run folder, such as runs/NAME"
    if not folder.is_dir():
        raise UserError(f"{folder} does not exist: {mend}")
    if not (folder / "config.yaml").is_file():
        raise UserError(f"{folder} holds no run (config.yaml is missing): {mend}")


def read_config(folder: Path) -> dict[str, Any]:
    """The configuration of the run in ``folder``, resolved.

    Raises:
        UserError: it holds no run, or a damaged one.
    """
    check_begun(folder)
    file = folder / "config.yaml"
    try:
        config = OmegaConf.to_container(OmegaConf.load(file))
    except (ValueError, OSError, YAMLError):
        config = None
    if not isinstance(config, dict) or not isinstance(config.get("stage"), str):
        raise UserError(f"{file} is not the configuration of a run: repeat the command that trains it")
    copy = "bring the old one back; export/manifest.json holds a copy as its config, once there is one"
    check_keys(config, recorded(config["stage"]), file, copy)
    return renamed({str(key): value for key, value in config.items()})


def unlike_best(folder: Path, config: dict[str, Any]) -> str | None:
    """A warning if ``folder`` holds a best checkpoint that was chosen otherwise than ``config`` chooses from now on."""
    from ldm_lightning.callbacks.checkpoint_files import BEST  # likewise

    if not (folder / "config.yaml").is_file() or not (folder / "checkpoints" / BEST).is_file():
        return None
    old, new = dict(_flat(read_config(folder))), dict(_flat(config))
    shown = {key: [node[key] if node.get(key) is not None else "null" for node in (old, new)] for key in _CHOOSES_BEST}
    changed = [f"{key}: {before} -> {now}" for key, (before, now) in shown.items() if before != now]
    if not changed:
        return None
    return (
        f"the best checkpoint so far was chosen by another measure ({'; '.join(changed)}), with which later ones are "
        "compared all the same: give the old values, or take checkpoint=last"
    )


def check_length(name: str, spare: int = 0) -> None:
    """Refuse a name that file systems cannot take, before work is spent on it.

    Args:
        name: of a folder or a file, also several with slashes between them.
        spare: bytes that will be added to it, such as by an ending.

    Raises:
        UserError: a part of it is too long.
    """
    longest = max((len(os.fsencode(part)) for part in Path(name).parts), default=0)
    if longest > _LONGEST - spare:
        raise UserError(
            f"name={name[:40]}... has {longest} bytes, and a name takes {_LONGEST - spare}: choose a shorter one"
        )


def check_place(config: DictConfig) -> None:
    """Refuse a seed, a place for the run, or a place of the pictures that cannot be meant."""
    config.name = config.name if config.name is None else str(config.name)
    if not isinstance(config.seed, int) or not 0 <= config.seed < 2**32 or not config.name:
        raise UserError(f"seed={config.seed} and name={config.name}: give a seed from 0 to {2**32 - 1} and a name")
    if not config.runs or ".." in Path(config.name).parts or Path(config.name).is_absolute():
        raise UserError(
            f"runs={config.runs} name={config.name}: a run lies below a folder runs, so name no other place"
        )
    check_length(config.name)
    if OmegaConf.select(config, "data.root") == "":
        raise UserError("data.root is empty: give the folder of the pictures")


def check_writable(folder: Path, mend: str) -> None:
    """Refuse a folder that cannot be made or written to, before work is spent on it; makes nothing.

    Raises:
        UserError: it ends with ``mend``.
    """
    try:
        place = next(place for place in (folder, *folder.absolute().parents) if place.exists())
        tempfile.TemporaryFile(dir=place).close()
    except OSError as error:
        raise UserError(f"nothing can be written to {folder} ({error.strerror}): {mend}") from error


def output_folder(given: str | None, default: Path) -> Path:
    """The folder that ``output=`` names, absolute; everything a verb writes lies inside.

    Raises:
        UserError: it names a file, or nothing can be written there.
    """
    folder = Path(given or default).absolute()
    if folder.is_file():
        raise UserError(f"{given or folder} is a file, but output= names a folder: choose another")
    if folder.suffix in (".png", ".json") and not folder.is_dir():
        mend = Path(str(given)).with_suffix("")
        raise UserError(f"output={given} looks like a file, but output= names a folder: write output={mend}")
    check_writable(folder, "choose another output=...")
    return folder


def claim(folder: Path, config: dict[str, Any]) -> None:
    """Make the run folder, or check that an existing one belongs to this configuration.

    Raises:
        UserError: the folder holds another experiment; the message shows what differs.
    """
    file = folder / "config.yaml"
    if file.exists():
        _check_ours(folder)
    trained = any((folder / "checkpoints").glob("*.ckpt")) or (folder / "export").exists()
    if file.is_file() and trained:  # before the first checkpoint there is nothing that a change could spoil
        changed = differences(read_config(folder), config)
        if any(line.startswith("derived.first_stage:") for line in changed):
            raise UserError(
                f"the first stage was trained again, or is another, since {folder} began: "
                f"set first_stage.run={folder / 'first_stage'}, the copy this run keeps, to go on with the old one, or "
                "choose another name=... to start on the new one"
            )
        if changed:
            shown = "; ".join(changed[:5]) + (f"; and {len(changed) - 5} more" if len(changed) > 5 else "")
            raise UserError(
                f"{folder} already holds a run with another configuration ({shown}): "
                f"choose another name=..., or give the old values to resume it"
            )
    check_writable(folder, "make it writable, or choose another place by runs=...")
    folder.mkdir(parents=True, exist_ok=True)
    content = OmegaConf.to_yaml(OmegaConf.create(config)).encode()
    if is_first_process() and not (file.is_file() and file.read_bytes() == content):
        output = Output(folder)
        if file.exists() and not output.owns(file.name):  # edited by hand, or older than the record
            print(f"{file} is kept as {set_aside(file).name}")
        output.add({file.name: content})


def _check_ours(folder: Path) -> None:
    try:
        read_config(folder)
    except UserError:
        raise UserError(
            f"{folder} holds something else (its config.yaml is not the configuration of a run): "
            "choose another name=..., or move that file away"
        ) from None


def is_first_process() -> bool:
    """Whether this is the first of all ranks, also before they have met."""
    from pytorch_lightning.utilities import rank_zero_only  # and torch with it, without which this module does

    return int(rank_zero_only.rank) == 0  # type: ignore[attr-defined]


def first_stage_of(config: DictConfig) -> Path:
    """Where the first stage is read from: where the user says, or the copy that a run keeps once that is gone."""
    run, own = Path(config.first_stage.run), Path(config.run_dir) / "first_stage"
    return own if (own / "manifest.json").is_file() and not run.is_dir() else run


@contextmanager
def lock(folder: Path, *, wait: bool = False) -> Iterator[None]:
    """Keep a folder for this command; a lock dies with its process.

    Args:
        folder: which exists.
        wait: for another command to end, where all keep it for moments only.

    Raises:
        UserError: another command is at work in this folder.
    """
    if not is_first_process():
        yield
        return
    with (folder / ".lock").open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except OSError:
            raise UserError(
                f"another command is at work in {folder}: wait for it, or choose another place (name= or output=)"
            ) from None
        yield


def _without_noise(record: logging.LogRecord) -> bool:
    """Leave out Lightning's advertisement, and let the end by a dead process say what to do."""
    message = record.getMessage()
    if "Forcefully terminating" in message:
        record.msg, record.args = f"{message.partition('.')[0]}, and so all processes end: {SAME_COMMAND}", ()
    return not any(noise in message for noise in _NOISE)


def silence() -> None:
    """Keep Lightning's advertisements and answers to what nobody asked from terminal and log, from its start on."""
    logging.getLogger("pytorch_lightning.utilities.rank_zero").addFilter(_without_noise)
    for noise in _NOISE:
        warnings.filterwarnings("ignore", message=f".*{re.escape(noise)}")


def write_log(folder: Path) -> None:
    """Send log records to the terminal, as plain lines, and to ``log.txt``, with their time."""
    root = logging.getLogger()
    for handler in list(root.handlers):
        root.removeHandler(handler)
        handler.close()
    file = logging.FileHandler(folder / "log.txt")
    file.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    terminal = logging.StreamHandler()
    terminal.setFormatter(logging.Formatter("%(message)s"))
    for handler in (file, terminal):
        handler.addFilter(_without_noise)
    for name in ("pytorch_lightning", "lightning_fabric"):  # each would print by a handler of its own
        logging.getLogger(name).handlers.clear()
        logging.getLogger(name).propagate = True
    logging.basicConfig(level=logging.INFO, handlers=[file, terminal])
    warnings.filterwarnings("ignore", message=r".*LeafSpec.* is deprecated")  # Lightning's own affair
    logging.captureWarnings(True)
