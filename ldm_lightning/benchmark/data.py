"""How fast batches come out of a latent cache, beside a loader that reads one file a sample.

A turn is an epoch from its first ``next`` to its last batch: keys, mirroring, gathering, conditions, one `Batch` with
packed posteriors (mean and standard deviation in half precision, before the draw), in one process, with all files in
the page cache. The two loaders take turns and medians count, so that other work on the machine disturbs both alike.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from ldm_lightning.data.datamodule import DataModule
from ldm_lightning.data.latent_files import Manifest, Writer
from ldm_lightning.data.latents import LatentCache, LatentDataset
from ldm_lightning.data.picture import ImageTransform

__all__ = ["measure_data"]

SHARDS, FILES = 4, 4096  # of the cache; of the loader that reads one a sample


def measure_data(
    *, samples: int, latent_channels: int, latent_size: int, batch_size: int, rounds: int
) -> tuple[dict[str, dict[str, Any]], dict[str, Any]]:
    """Measure both loaders on random latents in a temporary folder.

    Args:
        samples: how many latents the cache holds, at least as many as shards.
        latent_channels: of each.
        latent_size: height and width of each.
        batch_size: latents in a batch.
        rounds: how often the two take turns; figures are medians.

    Returns:
        Rows by loader with the samples it delivers in a second and in a second of processor time; and for the
        protocol, the ratio of the two and the speed of verifying the cache.
    """
    use = {
        "samples": samples,
        "shards": SHARDS,
        "files": min(FILES, samples),
        "latent_channels": latent_channels,
        "latent_size": latent_size,
        "batch_size": batch_size,
        "rounds": rounds,
    }
    transform = ImageTransform(8 * use["latent_size"], flip=True)
    with tempfile.TemporaryDirectory() as folder:
        cache, files = Path(folder) / "cache", Path(folder) / "files"
        _write_cache(cache, use, transform)
        _write_files(files, use)
        opened = LatentCache(str(cache))
        start = time.process_time()
        opened.prepare()
        verified = sum(path.stat().st_size for path in cache.rglob("*")) / (time.process_time() - start)
        data = DataModule(opened, transform, use["batch_size"], validation=0.0, dataset=LatentDataset)
        mapped = data.train_dataloader()
        plain: DataLoader[Any] = DataLoader(_Files(files, use["files"]), use["batch_size"], shuffle=True)
        turns = [(_turn(mapped, len), _turn(plain, lambda batch: len(batch[0]))) for _ in range(use["rounds"] + 1)]
    loaders = {"latent cache": [ours for ours, _ in turns[1:]], "a file a sample": [theirs for _, theirs in turns[1:]]}
    figures = {
        name: dict(zip(("samples_per_s", "samples_per_cpu_s"), map(median, zip(*each, strict=True)), strict=True))
        for name, each in loaders.items()
    }
    ratio = figures["latent cache"]["samples_per_s"] / figures["a file a sample"]["samples_per_s"]
    shape = f"{use['latent_channels']}x{use['latent_size']}x{use['latent_size']}"
    facts = {
        "a sample": f"mean and std of {shape} in float16, with a mirror image of which half are taken",
        "ratio": round(ratio, 1),
        "verified": f"{verified / 1e9:.2f} GB a second of processor time",
    }
    return figures, facts | use


def _turn(loader: Iterable[Any], size: Callable[[Any], int]) -> tuple[float, float]:
    """Samples a second of one epoch, and a second of processor time; ``size`` tells those of a batch."""
    start, used = time.perf_counter(), time.process_time()
    samples = sum(map(size, loader))
    return samples / (time.perf_counter() - start), samples / (time.process_time() - used)


def _write_cache(root: Path, use: dict[str, int], transform: ImageTransform) -> None:
    root.mkdir()
    count, size = use["samples"], use["latent_size"]
    shape = (2, 2 * use["latent_channels"], size, size)
    shard_size = -(-count // use["shards"])
    manifest = Manifest("none", repr(transform), "none", "float16", shape, count, shard_size, ("any",), {})
    writer, rng = Writer(root, manifest), np.random.default_rng(0)
    for number in writer.missing:
        part = rng.random((len(writer.samples(number)), *shape), dtype=np.float32)
        writer.write(number, part.astype(np.float16))
    hashes = rng.integers(0, 256, (count, 16), dtype=np.uint8)
    writer.finish({"hash": hashes, "label": np.zeros(count, np.int64)}, "first_stage")


def _write_files(root: Path, use: dict[str, int]) -> None:
    root.mkdir()
    for number in range(use["files"]):
        shape = (2 * use["latent_channels"], use["latent_size"], use["latent_size"])
        np.save(root / f"{number}.npy", np.zeros(shape, np.float16))


class _Files(Dataset[tuple[Tensor, int]]):
    """One file a sample, the way many training scripts keep latents."""

    def __init__(self, root: Path, count: int) -> None:
        self.root, self.count = root, count

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return torch.from_numpy(np.load(self.root / f"{index}.npy")), 0
