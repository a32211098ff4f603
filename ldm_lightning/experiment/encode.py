"""The latents of all pictures, written once for many second stages."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from omegaconf import DictConfig, OmegaConf, open_dict
from torch import Tensor
from tqdm import tqdm

from ldm_lightning.artifact import Artifact, copy_artifact, locate
from ldm_lightning.data.datamodule import DataModule
from ldm_lightning.data.dataset import PictureDataset
from ldm_lightning.data.latent_files import Manifest, Writer, check_folder, encode_texts
from ldm_lightning.data.loader import Loader
from ldm_lightning.data.picture import ImageTransform, Picture
from ldm_lightning.errors import UserError, nearest
from ldm_lightning.experiment import build
from ldm_lightning.experiment.best import announce_stale
from ldm_lightning.experiment.latent_data import FIRST_STAGE, is_cached
from ldm_lightning.experiment.launch import make_absolute
from ldm_lightning.experiment.load import default_device
from ldm_lightning.experiment.run_folder import lock
from ldm_lightning.experiment.saved import read_artifact
from ldm_lightning.experiment.schema import check, check_numbers
from ldm_lightning.latent.autoencoder import Autoencoder

__all__ = ["encode"]

_DTYPES = {"float16": np.float16, "float32": np.float32}
_SHARD_BYTES = 128 * 2**20


def encode(config: DictConfig) -> tuple[Path, Manifest]:
    """Encode what is not encoded yet of the pictures that ``config``, of the verb ``encode``, describes.

    Returns:
        The cache's folder, and what it says of itself.

    Raises:
        UserError: the first stage does not suit the pictures, or the folder holds other latents.
    """
    check_numbers(config, {"batch_size": int, "shard_size": int}, {"batch_size": 1, "shard_size": 1})
    if config.dtype not in _DTYPES:
        raise UserError(f"dtype={config.dtype} is none of {', '.join(_DTYPES)}{nearest(str(config.dtype), _DTYPES)}")
    artifact = read_artifact(config.run, "first_stage")
    announce_stale(config.run)
    node = _data(config, artifact)
    data = build.data_module(node)
    build.check_first_stage(config.run, artifact.manifest, node, data)
    autoencoder = build.frozen_first_stage(artifact).to(default_device()).autoencoder
    manifest = _manifest(config, artifact, node, data, autoencoder)
    place = locate(Path(config.run)).absolute()
    root = Path(config.output or place.parent / "latents").absolute()
    check_folder(root, manifest)
    root.mkdir(parents=True, exist_ok=True)
    with lock(root):
        writer = Writer(root, manifest)
        if place.resolve() != (root / FIRST_STAGE).resolve():  # mending a cache by its own first stage
            copy_artifact(place, root / FIRST_STAGE)
        _encode(autoencoder, data, writer, config.batch_size)
        writer.finish(_samples(data), FIRST_STAGE)
    return root, manifest


def _data(config: DictConfig, artifact: Artifact) -> DictConfig:
    """A configuration with the node ``data`` of the pictures to encode, checked."""
    given = OmegaConf.select(config, "data")
    node = OmegaConf.create({"seed": 0, "data": artifact.manifest["config"]["data"]})
    if given is not None:
        whole = "_target_" in given
        node.data = given if whole else OmegaConf.merge(node.data, given)
    if is_cached(node):
        raise UserError("data=latents holds no pictures to encode: choose other data")
    with open_dict(node):
        build.move_pictures(node, config.root)
    check(node, beside=[f"data.{key}" for key in build.DATA_SHORTCUTS])
    make_absolute(node)
    return node


@torch.inference_mode()
def _manifest(
    config: DictConfig, artifact: Artifact, node: DictConfig, data: DataModule, autoencoder: Autoencoder
) -> Manifest:
    blank = torch.zeros(1, *data.shape, device=default_device())
    views = 2 if data.transform.flip else 1
    shape = (views, *autoencoder.encode(blank).pack().shape[1:])
    sample_bytes = math.prod(shape) * np.dtype(_DTYPES[config.dtype]).itemsize
    plain: Any = OmegaConf.to_container(node.data, resolve=True, throw_on_missing=True)
    facts = {"validation": data.validation, "test": data.test, "caption_length": data.caption_length}
    return Manifest(
        first_stage=artifact.manifest["sha256"],
        transform=repr(data.transform),
        data=data.fingerprint,
        dtype=config.dtype,
        shape=shape,
        count=len(data.source),
        shard_size=config.shard_size or max(1, _SHARD_BYTES // sample_bytes),
        class_names=data.class_names,
        config={"source": plain["source"], "transform": plain["transform"], **facts},
    )


@dataclass(frozen=True)
class _Whole:
    """The transform of evaluation, for pictures whose training crop is the central one as well."""

    transform: ImageTransform

    def __call__(self, picture: Picture, rng: np.random.Generator | None = None) -> Tensor:
        if self.transform.wanders(picture.size):
            width, height = picture.size
            raise UserError(
                f"a picture of {width}x{height} is cropped at random in every epoch, which no cache can hold: add "
                "+data.transform.crop=center (and train without a cache for random crops)"
            )
        return self.transform(picture, rng)


@torch.inference_mode()
def _encode(autoencoder: Autoencoder, data: DataModule, writer: Writer, batch_size: int) -> None:
    """Write the missing shards. Batches begin with each shard, so a shard is the same however often this is killed."""
    manifest = writer.manifest
    batches = [
        [(0, i) for i in range(start, min(start + batch_size, samples.stop))]
        for samples in map(writer.samples, writer.missing)
        for start in range(samples.start, samples.stop, batch_size)
    ]
    dataset = PictureDataset(data.source, _Whole(data.transform), data.caption_length)
    loaded = iter(Loader(dataset, batches, data.num_workers, data.pin_memory))
    left = sum(map(len, batches))
    with tqdm(total=manifest.count, initial=manifest.count - left, desc="encoding", unit="picture") as bar:
        for number in writer.missing:
            samples = writer.samples(number)
            latents = np.empty((len(samples), *manifest.shape), dtype=manifest.dtype)
            for start in range(0, len(samples), batch_size):
                batch = next(loaded)
                x = batch.x.to(default_device())
                for view, seen in enumerate((x, x.flip(-1))[: manifest.shape[0]]):
                    latents[start : start + len(batch), view] = autoencoder.encode(seen).pack().cpu().numpy()
                bar.update(len(batch))
            if not np.isfinite(latents).all():
                raise UserError(
                    f"latents do not fit {manifest.dtype}: add dtype=float32, or train the first stage again"
                )
            writer.write(number, latents)


def _samples(data: DataModule) -> dict[str, np.ndarray]:
    """See `ldm_lightning.data.latent_files.read_samples`."""
    source = data.source
    every = range(len(source))
    known = {
        name: np.frombuffer(b"".join(map(of, every)), np.uint8).reshape(len(source), -1)
        for name, of in (("hash", source.content_hash), ("split_key", source.split_key))
    }
    if np.array_equal(known["split_key"], known["hash"]):
        del known["split_key"]
    if source.class_names:
        known["label"] = np.array([source.label(i) for i in every], dtype=np.int64)
    if source.has_captions:
        known |= encode_texts([source.captions(i) for i in every])
    return known
