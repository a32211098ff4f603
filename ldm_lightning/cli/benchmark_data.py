"""How fast batches come out of a latent cache, beside a loader that reads one file a sample.

``python -m ldm_lightning.cli.benchmark_data samples=65536`` prints the figures as JSON.

Both loaders are measured from their first ``next`` to their last batch: keys, gathering, conditions, one `Batch` with
packed posteriors (mean and standard deviation in half precision, before the draw), in one process, with all files in
the page cache. They take turns, and the median of the turns counts, so that other work on the machine disturbs both.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from collections.abc import Iterable, Sized
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from omegaconf import DictConfig, OmegaConf
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from ldm_lightning.data.datamodule import DataModule
from ldm_lightning.data.latent_files import Manifest, Writer
from ldm_lightning.data.latents import LatentCache, LatentDataset
from ldm_lightning.data.picture import ImageTransform

__all__ = ["DEFAULTS", "measure"]

DEFAULTS = {
    "samples": 65536,
    "files": 4096,  # of the loader that reads one a sample
    "channels": 4,
    "side": 8,
    "batch_size": 256,
    "shards": 4,
    "repeats": 5,
}


def measure(config: DictConfig) -> dict[str, Any]:
    """Measure both loaders on random latents in a temporary folder.

    Args:
        config: keys as in `DEFAULTS`.

    Returns:
        ``latents_per_s`` and ``files_per_s`` (medians, samples a second), ``ratio``, ``verify_gb_per_s`` of opening
        the cache, and ``protocol``.
    """
    with tempfile.TemporaryDirectory() as folder:
        cache, files = Path(folder) / "cache", Path(folder) / "files"
        _write_cache(cache, config)
        _write_files(files, config)
        opened = LatentCache(str(cache))
        start = time.perf_counter()
        opened.prepare()
        verified = sum(path.stat().st_size for path in cache.rglob("*")) / (time.perf_counter() - start)
        data = DataModule(
            opened, ImageTransform(config.side, flip=True), config.batch_size, validation=0.0, dataset=LatentDataset
        )
        mapped = data.train_dataloader()
        plain = DataLoader(_Files(files, config.files), config.batch_size, shuffle=True)
        turns = [(_rate(mapped, config.batch_size), _rate(plain, config.batch_size)) for _ in range(config.repeats + 1)]
    ours, theirs = (median(rates) for rates in zip(*turns[1:], strict=True))  # the first turn warms up
    return {
        "latents_per_s": round(ours),
        "files_per_s": round(theirs),
        "ratio": round(ours / theirs, 1),
        "verify_gb_per_s": round(verified / 1e9, 2),
        "protocol": {
            **{key: config[key] for key in DEFAULTS},
            "a sample is": "mean and std, float16, one of two views",
            "torch threads": torch.get_num_threads(),
        },
    }


def _rate(loader: Iterable[Any], batch_size: int) -> float:
    assert isinstance(loader, Sized)
    start = time.perf_counter()
    for _ in loader:
        pass
    return len(loader) * batch_size / (time.perf_counter() - start)


def _write_cache(root: Path, config: DictConfig) -> None:
    root.mkdir()
    shape = (2, 2 * config.channels, config.side, config.side)
    shard_size = -(-config.samples // config.shards)
    manifest = Manifest("none", "none", "none", "float16", shape, config.samples, shard_size, tuple("0123456789"), {})
    writer, rng = Writer(root, manifest), np.random.default_rng(0)
    for number in writer.missing:
        part = rng.random((len(writer.samples(number)), *shape), dtype=np.float32)
        writer.write(number, part.astype(np.float16))
    hashes = rng.integers(0, 256, (config.samples, 16), dtype=np.uint8)
    writer.finish({"hash": hashes, "label": np.arange(config.samples) % 10}, "nothing")


def _write_files(root: Path, config: DictConfig) -> None:
    root.mkdir()
    for number in range(config.files):
        np.save(root / f"{number}.npy", np.zeros((2 * config.channels, config.side, config.side), np.float16))


class _Files(Dataset[tuple[Tensor, int]]):
    """One file a sample, the way many training scripts keep latents."""

    def __init__(self, root: Path, count: int) -> None:
        self.root, self.count = root, count

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return torch.from_numpy(np.load(self.root / f"{index}.npy")), index % 10


if __name__ == "__main__":
    chosen = OmegaConf.merge(DEFAULTS, OmegaConf.from_dotlist(sys.argv[1:]))
    assert isinstance(chosen, DictConfig)
    print(json.dumps(measure(chosen), indent=2))
