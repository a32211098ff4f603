"""A sweep: what each of its jobs changes, the folder that is named by it, and what became of the jobs that failed."""

from __future__ import annotations

import hashlib
import json
import re
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.types import RunMode

from ldm_lightning.cli.arguments import split_arguments
from ldm_lightning.errors import causes, first_line

__all__ = ["Failures", "changes", "folder_name", "is_sweep", "record"]

_PLAIN = re.compile(r"[A-Za-z0-9_.,=+-]*")
_LONGEST = 200  # characters; folders take 255 bytes, and what is named after a folder is a little longer
_PREFIX = 60
_TABLE = "multirun-names.yaml"


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


class Failures:
    """The jobs of a sweep that failed: one ends, the others run."""

    def __init__(self, verb: str, explain: Callable[[BaseException], str | None]) -> None:
        self.verb = verb
        self.explain = explain  # a mistake of the user's in one line, None for a defect
        self.jobs = 0
        self.found: list[tuple[str, str, bool]] = []  # job, cause, whether it is a mistake of the user's
        self._raised: list[BaseException] = []

    @contextmanager
    def noted(self) -> Iterator[None]:
        """Run a job: what fails in it is noted, and raised again where a sweeper wants to know of it.

        A signal, and an exit that a job asks for, pass through and end the sweep.
        """
        self.jobs += 1
        try:
            yield
        except Exception as error:
            message = self.explain(error)
            if message is None:
                traceback.print_exc()
            job = ",".join(changes()) or str(HydraConfig.get().job.num)
            self.found.append((job, message or f"{type(error).__name__}: {first_line(error)}", message is not None))
            if not _is_plain():
                self._raised.append(error)
                raise

    @contextmanager
    def listed(self) -> Iterator[None]:
        """Run the sweep, then list what failed.

        Raises:
            SystemExit: something did; code 2 if all of it are mistakes of the user's, else 1.
        """
        try:
            yield
        except Exception as error:
            if not any(cause in self._raised for cause in causes(error)):
                self._print()
                raise
        except BaseException:  # the sweep was stopped, and says so by its own exit code
            self._print()
            raise
        if self.found:
            self._print()
            raise SystemExit(2 if all(mistake for *_, mistake in self.found) else 1)

    def _print(self) -> None:
        if not self.found:
            return
        reasons = {cause for _, cause, _ in self.found}
        if len(self.found) == self.jobs and len(reasons) == 1:  # a mistake in what all jobs share
            lines = [reasons.pop()]
        else:
            lines = [f"{len(self.found)} of {self.jobs} jobs failed; the same command runs these alone again:"]
            lines += [f"  {job}: {cause}" for job, cause, _ in self.found]
        print(f"ldm {self.verb}: " + "\n".join(lines), file=sys.stderr)


def _is_plain() -> bool:
    """Whether jobs run in this process for their own sake: Hydra would then end the sweep at the first that raises."""
    job = HydraConfig.get()
    return all("Basic" in str(part._target_) for part in (job.launcher, job.sweeper))
