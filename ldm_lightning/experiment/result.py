"""Results that verbs leave: a page of figures, with a picture where there is one, of which none is ever lost."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ldm_lightning.experiment.run_folder import lock
from ldm_lightning.output import Output

__all__ = ["check_result", "publish"]


def check_result(folder: Path, name: str, *, picture: bool = False, mend: str = "output=") -> None:
    """Check that :func:`publish` may write the result ``name``, before work is spent on it.

    Raises:
        UserError: something that is not ours has its name.
    """
    Output(folder, f"move it away, or choose another {mend}...").check_result(name, picture=picture)


def publish(folder: Path, name: str, facts: Mapping[str, Any], picture: bytes | None = None) -> Path:
    """Write the result ``name``, see `Output.publish`, say where an earlier one is kept, and return its page."""
    folder.mkdir(parents=True, exist_ok=True)
    with lock(folder, wait=True):
        kept = Output(folder).publish(name, facts, picture)
    if kept is not None:
        print(f"an earlier {name} is kept: {folder / kept}.json")
    return folder / f"{name}.json"
