"""The pictures of docs/choosing.md are drawn by docs/draw.py, and the page quotes the figures that it computes."""

from __future__ import annotations

import csv
import re
import runpy
from pathlib import Path

import pytest
from PIL import Image

DOCS = Path(__file__).parents[1] / "docs"
PAGE = (DOCS / "choosing.md").read_text(encoding="utf-8")


def read(file: Path) -> dict[tuple[str, str], float]:
    with file.open(encoding="utf-8") as lines:
        return {(row["what"], row["where"]): float(row["value"]) for row in csv.DictReader(lines)}


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pictures")
    runpy.run_path(str(DOCS / "draw.py"))["main"](folder)
    return folder


@pytest.mark.slow
def test_every_picture_of_the_page_is_drawn(drawn: Path) -> None:
    shown = re.findall(r"\]\(pictures/(\w+\.png)\)", PAGE)
    assert sorted(shown) == sorted(file.name for file in drawn.glob("*.png"))
    for name in shown:
        with Image.open(drawn / name) as new, Image.open(DOCS / "pictures" / name) as kept:
            assert new.size == kept.size
            assert len(new.convert("L").getcolors(256) or ()) > 20  # not an empty sheet
        assert (DOCS / "pictures" / name).stat().st_size < 250_000


@pytest.mark.slow
def test_the_kept_figures_are_those_computed(drawn: Path) -> None:
    kept, new = read(DOCS / "pictures" / "figures.csv"), read(drawn / "figures.csv")
    assert kept.keys() == new.keys()
    for key, value in kept.items():
        assert new[key] == pytest.approx(value, rel=0.1, abs=1e-5), key


def test_the_page_quotes_the_kept_figures() -> None:
    kept = read(DOCS / "pictures" / "figures.csv")
    rows = dict(re.findall(r"^\| `(\w+)` \|.*\| ([\d.]+)[^|]* \|$", PAGE.split("## Samplers")[1], re.MULTILINE))
    for (what, where), value in kept.items():
        if where in ("linear_flow, 23 evaluations", "linear_flow, 24 evaluations") and "eta" not in what:
            for name in what.removeprefix("W2 of ").removesuffix(", s_churn=10").split(", "):
                assert float(rows[name]) == value, name
    for grid in ("uniform", "flow", "quadratic", "karras", "log_snr"):
        value = kept[f"W2 of heun, grid={grid}", "scaled_linear, 23 evaluations"]
        assert f"{value:g}" in PAGE.split("### Spacing")[1]


def test_every_option_has_a_row() -> None:
    for group in ("path", "prediction", "objective", "sampler", "sampler/grid", "guidance", "likelihood"):
        for file in (DOCS.parent / "conf" / group).glob("*.yaml"):
            assert f"`{file.stem}`" in PAGE, f"{group}={file.stem}"
