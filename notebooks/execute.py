"""Run every notebook from top to bottom; the first error fails. Executed copies, with their pictures, go to build/."""

from __future__ import annotations

import os
from pathlib import Path

import nbformat
from nbclient import NotebookClient

TIMEOUT = 1800  # seconds a cell

HERE = Path(__file__).resolve().parent


def execute(file: Path, copy: Path) -> None:
    notebook = nbformat.read(file, as_version=4)
    # In its own folder, as when somebody opens it.
    client = NotebookClient(
        notebook, timeout=TIMEOUT, kernel_name="python3", resources={"metadata": {"path": file.parent}}
    )
    try:
        client.execute()
    finally:  # a failed copy shows where it failed
        copy.parent.mkdir(exist_ok=True)
        nbformat.write(notebook, copy)


if __name__ == "__main__":
    if "LDM_RUNS" in os.environ:
        os.environ["LDM_RUNS"] = str(Path(os.environ["LDM_RUNS"]).absolute())
    for file in sorted(HERE.glob("*.ipynb")):
        copy = HERE.parent / "build" / file.name
        execute(file, copy)
        print(f"{file.name}: {copy}")
