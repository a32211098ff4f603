"""Latents encoded once are as good as pictures encoded in every step, and encoding survives being killed."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from ldm_lightning.artifact import read_artifact, read_manifest
from ldm_lightning.data.emoji import Emoji
from ldm_lightning.data.latent_files import read_manifest as read_cache
from ldm_lightning.data.latents import LatentCache
from ldm_lightning.data.split import split
from ldm_lightning.loggers.csv_log import read_metrics
from tests.conftest import TINY_FIRST_STAGE, TINY_LATENT_DIFFUSION, Result

Ldm = Callable[..., Result]

# What the cache knows by itself is left out, and flips are on by default.
CACHED = [text for text in TINY_LATENT_DIFFUSION if not text.startswith(("data.size", "data.validation"))]
MORE = [
    "trainer.max_steps=10",  # three epochs of four batches
    "callbacks=latent_diffusion_fd",
    "extractor@callbacks.frechet.extractor=tiny",
]


def encode(ldm: Ldm, run: Path, output: Path, *args: str) -> Path:
    done = ldm("encode", f"run={run}", f"output={output}", "shard_size=30", "batch_size=16", *args)
    assert done.code == 0, done.err
    assert str(output) in done.out
    return output


def train(ldm: Ldm, runs: Path, name: str, *args: str) -> Path:
    done = ldm("train", *args, *MORE, f"runs={runs}", f"name={name}")
    assert done.code == 0, done.err
    return runs / name


@pytest.mark.slow
def test_a_cache_trains_as_the_pictures_do(pictures: Path, first_stage_run: Path, tmp_path: Path, ldm: Ldm) -> None:
    source = ["data=image_folder", f"data.root={pictures}", f"first_stage.run={first_stage_run}"]
    live = train(ldm, tmp_path, "live", *TINY_LATENT_DIFFUSION, *source)
    expected = read_metrics(live / "metrics.csv")
    assert {"train/loss", "val/loss", "val/fd_tiny@13_too_few"} <= expected.keys()
    for dtype, tolerance in (("float32", 1e-6), ("float16", 1e-3)):
        cache = encode(ldm, first_stage_run, tmp_path / dtype, f"dtype={dtype}")
        run = train(ldm, tmp_path, f"run_{dtype}", *CACHED, "data=latents", f"data.root={cache}")
        found = read_metrics(run / "metrics.csv")
        assert found.keys() == expected.keys()
        for name, points in expected.items():
            assert [step for step, _ in found[name]] == [step for step, _ in points]
            wanted = pytest.approx([v for _, v in points], rel=tolerance, abs=tolerance)  # means of latents are near 0
            assert [v for _, v in found[name]] == wanted, name
        for key in ("data", "contents", "class_names", "first_stage"):
            ours, theirs = (read_manifest(r)["config"]["derived"][key] for r in (run, live))
            assert ours == theirs
    # fp16 is not fp32 by another name, and a draw is not the mean.
    assert read_metrics(run / "metrics.csv")["train/loss"] != expected["train/loss"]
    shard = np.load(next((tmp_path / "float32").glob("latents-00000-*")))
    assert shard.shape == (30, 2, 8, 4, 4)
    assert (shard[:, :, 4:] > 0).all()
    assert np.abs(shard[:, 0] - shard[:, 1]).max() > 1e-3  # the mirror image has another latent


@pytest.mark.slow
def test_a_run_from_a_cache_outlives_it(pictures: Path, first_stage_run: Path, tmp_path: Path, ldm: Ldm) -> None:
    """Evaluated on the pictures, sampled from and resumed although cache or first stage are gone or moved."""
    shutil.copytree(first_stage_run, tmp_path / "first")
    shutil.copytree(pictures, tmp_path / "pictures")
    done = ldm("encode", f"run={tmp_path}/first", f"root={tmp_path}/pictures")
    assert done.code == 0, done.err
    (tmp_path / "first" / "latents").rename(tmp_path / "cache")
    shutil.rmtree(tmp_path / "first")
    args = ["train", *CACHED, "data=latents", f"runs={tmp_path}", "name=run", "trainer.val_check_interval=3"]
    (tmp_path / "pictures").rename(tmp_path / "away")  # the gallery shows samples only
    done = ldm(*args, f"data.root={tmp_path}/cache", "trainer.max_steps=3")
    assert done.code == 0, done.err
    (tmp_path / "cache").rename(tmp_path / "moved")
    done = ldm(*args, f"data.root={tmp_path}/moved", "trainer.max_steps=6")
    assert done.code == 0, done.err
    assert "resuming" in done.err
    shutil.rmtree(tmp_path / "moved")
    assert ldm("evaluate", f"run={tmp_path}/run", f"root={tmp_path}/away").code == 0
    assert ldm("sample", f"run={tmp_path}/run", "n=2").code == 0


@pytest.mark.slow
def test_pictures_that_have_moved_are_compared_with(pictures: Path, latents: Path, tmp_path: Path, ldm: Ldm) -> None:
    shutil.copytree(pictures, tmp_path / "moved")
    args = [*CACHED, "data=latents", f"data.root={latents}", f"data.pictures={tmp_path}/moved"]
    run = train(ldm, tmp_path, "run", *args, "trainer.max_steps=3")
    assert "val/fd_tiny@13_too_few" in read_metrics(run / "metrics.csv")


SLAY = """
import os, pathlib, signal
replace, count = pathlib.Path.replace, 0
def slay(self, target):
    global count
    if os.environ["SLAY_IN"] in str(target):
        if count == int(os.environ["SLAY_AT"]):
            os.kill(os.getpid(), signal.SIGKILL)
        count += 1
    return replace(self, target)
pathlib.Path.replace = slay
"""


def contents(root: Path) -> dict[str, bytes]:
    return {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file()}


@pytest.mark.slow
def test_encoding_killed_and_continued_is_never_killed(first_stage_run: Path, tmp_path: Path, ldm: Ldm) -> None:
    (tmp_path / "slay").mkdir()
    (tmp_path / "slay" / "sitecustomize.py").write_text(SLAY)
    path = os.pathsep.join([str(tmp_path / "slay"), str(Path.cwd()), os.environ.get("PYTHONPATH", "")])
    output = tmp_path / "killed"

    def start(at: int) -> subprocess.CompletedProcess[str]:
        environment = {**os.environ, "PYTHONPATH": path, "SLAY_IN": str(output), "SLAY_AT": str(at)}
        command = [sys.executable, "-m", "ldm_lightning", "encode", f"run={first_stage_run}", f"output={output}"]
        command += ["shard_size=30", "batch_size=16"]
        return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)

    # While the first stage is copied; with one shard of three complete; when it is all there but the manifest; and then
    # not at all.
    for at, shards in ((2, 0), (4, 1), (4, 3)):
        killed = start(at)
        assert killed.returncode == -signal.SIGKILL, killed.stderr
        assert len(list(output.glob("latents-*"))) == shards
        left = {0: "first_stage/.manifest*", 1: ".*-*.npy.*", 3: ".manifest*"}
        assert list(output.glob(left[shards]))  # what it was writing
        refused = ldm("train", *CACHED, "data=latents", f"data.root={output}", f"runs={tmp_path}")
        assert refused.code == 2
        assert f"incomplete ({shards} of 3 shards)" in refused.err
    finished = start(-1)
    assert finished.returncode == 0, finished.stderr
    assert contents(output) == contents(encode(ldm, first_stage_run, tmp_path / "whole"))


def test_a_complete_cache_is_left_alone(latents: Path, first_stage_run: Path, tmp_path: Path, ldm: Ldm) -> None:
    shutil.copytree(latents, tmp_path / "cache")
    stamps = {path: path.stat().st_mtime_ns for path in (tmp_path / "cache").glob("latents-*")}
    encode(ldm, first_stage_run, tmp_path / "cache")
    assert {path: path.stat().st_mtime_ns for path in stamps} == stamps
    assert contents(tmp_path / "cache") == contents(latents)


def test_the_cache_names_what_it_is_of(latents: Path, first_stage_run: Path) -> None:
    manifest = read_cache(latents)
    assert manifest.first_stage == read_manifest(first_stage_run)["sha256"]
    assert manifest.data == read_manifest(first_stage_run)["config"]["derived"]["data"]
    assert (manifest.count, manifest.shape, manifest.dtype) == (80, (2, 8, 4, 4), "float16")
    assert manifest.class_names == ("one", "zero")
    assert read_artifact(latents / "first_stage").manifest["kind"] == "first_stage"


def test_other_pictures_by_the_same_first_stage(first_stage_run: Path, tmp_path: Path, ldm: Ldm) -> None:
    from PIL import Image

    (tmp_path / "own").mkdir()
    for number in range(6):
        Image.new("RGB", (16, 20), (40 * number, 10, 200)).save(tmp_path / "own" / f"{number}.png")
    data = ["data=image_folder", f"data.root={tmp_path}/own", "data.size=16"]
    still = ["data.transform.crop=center", "data.transform.flip=false"]
    cache = encode(ldm, first_stage_run, tmp_path / "cache", *data, *still)
    manifest = read_cache(cache)
    assert (manifest.count, manifest.shape, manifest.class_names) == (6, (1, 8, 4, 4), ())
    assert manifest.config["validation"] == 0.05


@pytest.mark.slow
def test_captions_train_from_a_cache_as_from_pictures(
    pictures: Path, first_stage_run: Path, tmp_path: Path, ldm: Ldm
) -> None:
    shutil.copytree(pictures, tmp_path / "pictures")
    files = sorted(
        path.relative_to(tmp_path / "pictures").as_posix() for path in (tmp_path / "pictures").rglob("*.png")
    )
    rows = [f"{file},a {file[:3]} with é" for file in files[1:]]  # one has none
    (tmp_path / "pictures" / "c.csv").write_text("\n".join(["file,caption", *rows]), encoding="utf-8")
    data = ["data=image_folder", f"data.root={tmp_path}/pictures", "data.captions=c.csv", "data.caption_length=12"]
    data += ["data.size=16", "data.validation=0.2", "data.num_workers=0"]
    cache = encode(ldm, first_stage_run, tmp_path / "cache", *data, "dtype=float32")
    tiny = [text for text in CACHED if not text.startswith("condition")]
    tiny += ["condition=caption", "condition.width=16", "condition.depth=1", "condition.heads=2"]
    live = train(ldm, tmp_path, "live", *tiny, *data, f"first_stage.run={first_stage_run}")
    cached = train(ldm, tmp_path, "cached", *tiny, "data=latents", f"data.root={cache}")
    theirs, ours = (read_metrics(run / "metrics.csv") for run in (live, cached))
    assert ours.keys() == theirs.keys()
    for name, points in theirs.items():
        assert [v for _, v in ours[name]] == pytest.approx([v for _, v in points], rel=1e-6), name
    assert ldm("sample", f"run={cached}", "n=2", "captions=[a zer]").code == 0


def test_a_cache_keeps_together_what_the_pictures_keep_together(emoji_package: Path, tmp_path: Path, ldm: Ldm) -> None:
    data = ["data=emoji", f"data.root={emoji_package}", "data.transform.upscale=false"]
    done = ldm("train", *data, *TINY_FIRST_STAGE, f"runs={tmp_path}", "name=first")
    assert done.code == 0, done.err
    cache = encode(ldm, tmp_path / "first", tmp_path / "latents")
    done = ldm("train", *CACHED, "data=latents", f"data.root={cache}", f"runs={tmp_path}", "name=second")
    assert done.code == 0, done.err
    source = LatentCache(str(cache))
    source.prepare()
    live = Emoji(str(emoji_package))
    live.prepare()
    keys = [live.split_key(i) for i in range(len(live))]
    assert [source.split_key(i) for i in range(len(source))] == keys != [live.content_hash(i) for i in range(len(live))]
    assert f"data: {len(split(keys, 0.2, 0)['train'])} train" in done.err + done.out
