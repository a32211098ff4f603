"""``ldm benchmark``: every sampler is measured, with a protocol, and mistakes end in one line. No time is judged."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.conftest import Result

CONF = Path(__file__).parents[2] / "conf"
TINY = ["denoiser=dit_tiny", "denoiser.width=16", "denoiser.depth=1", "denoiser.heads=2", "batch_size=2"]
TINY += ["latent_size=4", "rounds=1", "steps=3"]


def test_every_sampler_is_measured(ldm: Callable[..., Result], tmp_path: Path) -> None:
    result = ldm("benchmark", *TINY, f"output={tmp_path}/a/b")
    assert result.code == 0, result.err
    written = json.loads((tmp_path / "a" / "b" / "sampler.json").read_text())
    figures, protocol = written["figures"], written["protocol"]
    others = {"bernoulli_ancestral", "ddpm_learned"}  # for another path, or another prediction
    assert figures.keys() == {file.stem for file in (CONF / "sampler").glob("*.yaml")} - others
    calls = {name: row["calls"] for name, row in figures.items()}
    assert {"euler": 3, "heun": 5, "edm": 5, "plms": 4, "rk4": 11}.items() <= calls.items()
    assert all(row[key] > 0 for row in figures.values() for key in row)
    assert protocol.keys() >= {"steps", "batch_size", "rounds", "network", "machine", "threads", "torch", "clock"}
    assert all(name[:8] in result.out for name in figures)
    assert f"figures: {tmp_path}/a/b/sampler.json" in result.out


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("what=smapler", "what=smapler is none of .*sampler"),
        ("only=[huen]", "only=huen is no sampler; did you mean 'heun'"),
        ("only=[bernoulli_ancestral]", "BernoulliPath.*sampler=euler"),
        ("prediction=learned_variance", "another prediction"),
        ("rounds=0", "rounds=0 must be at least 1"),
        ("steps=2.5", "steps=2.5 is not of type int"),
    ],
)
def test_mistakes_are_one_line(override: str, words: str, ldm: Callable[..., Result], tmp_path: Path) -> None:
    result = ldm("benchmark", *TINY, override, f"output={tmp_path}/b")
    assert result.code == 2
    assert re.search(words, result.err), result.err
    assert len(result.err.strip().splitlines()) == 1


def test_both_loaders_of_latents_are_measured(ldm: Callable[..., Result], tmp_path: Path) -> None:
    result = ldm("benchmark", "what=data", "samples=600", "latent_size=2", "rounds=1", f"output={tmp_path}/b")
    assert result.code == 0, result.err
    written = json.loads((tmp_path / "b" / "data.json").read_text())
    assert written["figures"].keys() == {"latent cache", "a file a sample"}
    assert all(value > 0 for row in written["figures"].values() for value in row.values())
    assert written["protocol"].keys() >= {"samples", "batch_size", "ratio", "verified", "threads"}
