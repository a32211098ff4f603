"""A sweep: what each of its jobs changes, the folder that is named by it, and what became of the jobs that failed."""

from __future__ import annotations

import hashlib
import json
import os
import re
import sys
import traceback
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.experimental.callback import Callback
from hydra.types import RunMode
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from ldm_lightning.cli.arguments import split_arguments
from ldm_lightning.errors import UserError, causes, first_line
from ldm_lightning.experiment.run_folder import is_first_process

__all__ = ["Begin", "Failures", "changes", "folder_name", "is_sweep", "name_sweep_job", "record"]

_PLAIN = re.compile(r"[A-Za-z0-9_.,=+-]*")
_LONGEST = 200  # characters; folders take 255 bytes, and what is named after a folder is a little longer
_PREFIX = 60
_TABLE = "multirun-names.yaml"
_OUTCOMES = "LDM_SWEEP_OUTCOMES"  # environment variable: the file of the sweep at work, reached from all its processes


def is_sweep() -> bool:
    """Whether what runs now is a job of a sweep."""
    return bool(HydraConfig.get().mode == RunMode.MULTIRUN)


def changes() -> list[str]:
    """What the sweep changes in this job: its overrides of the keys that have several values."""
    job = HydraConfig.get()
    typed = OverridesParser.create().parse_overrides(split_arguments(sys.argv[2:])[0])
    swept = {override.key_or_group for override in typed if override.is_sweep_override()}
    swept |= set((job.sweeper.get("params") or {}).keys())
    return [text for text in job.overrides.task if text.lstrip("+").partition("=")[0] in swept]


def folder_name(overrides: list[str]) -> str:
    """A name for the folder of the job with these overrides; different ones never share a name.

    They are the name where they are short and of plain characters. Else it is their beginning and a hash of the whole.
    """
    text = ",".join(overrides)
    if _PLAIN.fullmatch(text) and len(text) <= _LONGEST:
        return text
    readable = re.sub(r"[^A-Za-z0-9_.,=+-]+", "_", text)[:_PREFIX]
    return f"{readable}-{hashlib.sha256(json.dumps(overrides).encode()).hexdigest()[:12]}"


def record(name: str, overrides: list[str]) -> None:
    """Note in the table beside ``multirun.yaml`` what a name that does not say it all stands for."""
    table = Path(HydraConfig.get().sweep.dir) / _TABLE
    line = f"{json.dumps(name, ensure_ascii=False)}: {json.dumps(overrides, ensure_ascii=False)}\n"
    if table.is_file() and line in table.read_text(encoding="utf-8"):
        return
    with table.open("a", encoding="utf-8") as file:  # never replaced: jobs of several sweeps may write at once
        file.write(line)


@dataclass(frozen=True)
class _Outcome:
    """How the job ``number`` ended: ``cause`` is None where it did well."""

    number: int
    job: str
    cause: str | None = None
    is_mistake: bool = False  # of the user's, else a defect


class Begin(Callback):
    """Says to the jobs, which the launcher may start in other processes, where to leave word of how they ended."""

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Called before the first job, in the process that lists the failures at the end."""
        try:
            folder = Path(config.hydra.sweep.dir).absolute()
        except OmegaConfBaseException:  # a place that is still to be named, which Hydra goes on to say
            return
        os.environ[_OUTCOMES] = str(folder / f".outcomes-{uuid.uuid4().hex}")


class Failures:
    """The jobs of a sweep that failed: one ends, the others run."""

    def __init__(self, verb: str, explain: Callable[[BaseException], str | None]) -> None:
        self.verb = verb
        self.explain = explain  # a mistake of the user's in one line, None for a defect

    @contextmanager
    def noted(self) -> Iterator[None]:
        """Run a job: what fails in it is noted, and raised again where a sweeper wants to know of it.

        A signal, and an exit that a job asks for, pass through and end the sweep.
        """
        number = HydraConfig.get().job.num
        job = ",".join(changes()) or str(number)
        try:
            yield
        except Exception as error:
            message = self.explain(error)
            if message is None:
                traceback.print_exc()
            cause = message or _defect(error)
            left = _leave(_Outcome(number, job, cause, message is not None))
            print(f"job {job} failed: {cause}", file=sys.stderr)
            # Hydra's own sweeper would end the sweep after the jobs in hand; others choose by it what comes next.
            if not left or "BasicSweeper" not in str(HydraConfig.get().sweeper._target_):
                raise
        else:
            _leave(_Outcome(number, job))

    @contextmanager
    def listed(self) -> Iterator[None]:
        """Run the sweep, then list what failed.

        Raises:
            SystemExit: something did; code 2 if all of it are mistakes of the user's, else 1.
        """
        os.environ.pop(_OUTCOMES, None)
        try:
            yield
        except Exception as error:
            failed = self._list()
            known = {outcome.cause for outcome in failed}
            if not any(self.explain(cause) in known or _defect(cause) in known for cause in causes(error)):
                raise
        except BaseException:  # the sweep was stopped, and says so by its own exit code
            self._list()
            raise
        else:
            failed = self._list()
        if failed:
            raise SystemExit(2 if all(outcome.is_mistake for outcome in failed) else 1)

    def _list(self) -> list[_Outcome]:
        jobs = _take_outcomes()
        failed = [outcome for outcome in jobs if outcome.cause is not None]
        if not failed:
            return []
        reasons = {outcome.cause for outcome in failed}
        if len(failed) == len(jobs) and len(reasons) == 1:  # a mistake in what all jobs share
            lines = [str(reasons.pop())]
        else:
            lines = [f"{len(failed)} of {len(jobs)} jobs failed; the same command runs these alone again:"]
            lines += [f"  {outcome.job}: {outcome.cause}" for outcome in failed]
        print(f"ldm {self.verb}: " + "\n".join(lines), file=sys.stderr)
        return failed


def _defect(error: BaseException) -> str:
    return f"{type(error).__name__}: {first_line(error)}"


def _leave(outcome: _Outcome) -> bool:
    """Leave word of a job; False where the launcher did not pass on where to."""
    path = os.environ.get(_OUTCOMES)
    if path is None:
        return False
    with Path(path).open("a", encoding="utf-8") as file:
        file.write(f"{json.dumps(asdict(outcome))}\n")  # at once, so that no other job writes in between
    return True


def _take_outcomes() -> list[_Outcome]:
    """How the jobs of this sweep ended, by their numbers; of the ranks of a job, any that failed speaks for it."""
    path = os.environ.pop(_OUTCOMES, None)
    if path is None or not Path(path).is_file():
        return []
    read = [_Outcome(**json.loads(line)) for line in Path(path).read_text(encoding="utf-8").splitlines()]
    Path(path).unlink()
    by_number = {outcome.number: outcome for outcome in sorted(read, key=lambda outcome: outcome.cause is not None)}
    return [by_number[number] for number in sorted(by_number)]


def name_sweep_job(config: DictConfig) -> None:
    """Give every job of a sweep a folder of its own, named by what the sweep changes."""
    if not is_sweep():
        return
    import torch  # the places of a command are looked at before

    alone = torch.cuda.device_count() < 2 if config.trainer.devices in ("auto", -1) else config.trainer.devices == 1
    if not alone and "Basic" in str(HydraConfig.get().launcher._target_):
        raise UserError(
            "a sweep over several devices needs a launcher that starts one process per device, such as "
            "hydra-submitit-launcher: choose it by hydra/launcher=..., or set trainer.devices=1"
        )
    overrides = changes()
    short = folder_name(overrides) or str(HydraConfig.get().job.num)
    if overrides and short != ",".join(overrides) and is_first_process():
        record(f"{config.name}/{short}", overrides)
    config.name = f"{config.name}/{short}"
