"""The promises of the images, checked without an engine: hadolint looks after the rest."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FILES = sorted((ROOT / "docker").glob("*.Dockerfile"))


@pytest.fixture(params=FILES, ids=lambda path: path.stem)
def steps(request: pytest.FixtureRequest) -> list[tuple[str, str]]:
    """Return (instruction, arguments) in order, comments gone and continued lines joined."""
    lines = [
        line for line in request.param.read_text().splitlines() if line.strip() and not line.lstrip().startswith("#")
    ]
    text = "\n".join(lines).replace("\\\n", " ")
    return [(word.upper(), rest.strip()) for word, _, rest in (line.partition(" ") for line in text.splitlines())]


def position(steps: list[tuple[str, str]], instruction: str, part: str) -> int:
    (found,) = [i for i, (word, rest) in enumerate(steps) if word == instruction and part in rest.split()]
    return found


def test_there_is_an_image_for_each_kind_of_machine() -> None:
    assert [path.name for path in FILES] == ["cpu.Dockerfile", "cuda.Dockerfile"]


def test_bases_and_torch_are_pinned(steps: list[tuple[str, str]]) -> None:
    bases = [rest for word, rest in steps if word == "FROM"]
    assert bases
    assert all(re.search(r":(?!latest)[\w.-]*\d", base) for base in bases)
    assert any(re.search(r"\btorch==\d", rest) for word, rest in steps if word == "RUN")


def test_it_runs_ldm_as_an_ordinary_user_in_a_volume(steps: list[tuple[str, str]]) -> None:
    last = dict(steps)
    assert last["ENTRYPOINT"] == '["ldm"]'
    assert last["USER"] not in ("root", "0")
    assert last["WORKDIR"] == last["VOLUME"]


def test_dependencies_are_cached_below_the_source(steps: list[tuple[str, str]]) -> None:
    source = position(steps, "COPY", "ldm_lightning")
    install = position(steps, "RUN", "constraints.txt")
    assert position(steps, "COPY", "constraints.txt") < install < source
    assert all("--no-deps" in rest for word, rest in steps[source:] if word == "RUN" and "pip install" in rest)


def test_what_is_copied_is_let_through_and_nothing_else(steps: list[tuple[str, str]]) -> None:
    ignore = (ROOT / ".dockerignore").read_text().splitlines()
    assert ignore[1] == "*"
    allowed = {line.removeprefix("!") for line in ignore if line.startswith("!")}
    copied = {name for word, rest in steps if word == "COPY" for name in rest.split()[:-1]}
    assert copied == allowed
    assert not any(re.search(r"(?i)\b(api_key|token|secret|password)\b", rest) for _, rest in steps)
