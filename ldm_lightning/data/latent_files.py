"""The files of a latent cache.

======================== ================================================================================
``manifest.json``        what the latents are of, and the checksum of every other file; and its own
``latents-K-SUM.npy``    samples ``K * shard_size ...`` as one array (n, views, P, *space), mapped into memory
``samples-SUM.safe...``  content hashes, labels and captions of all samples
``first_stage/``         the artifact that encoded them
======================== ================================================================================

A file appears under its name only once it is complete and on the disk, and carries its checksum (SHA-256) in it.
So whoever is killed while writing leaves a number of good shards, and going on means to make the missing ones. The
manifest is written twice: first without the list of files, which keeps readers away and tells what is being made, and
last with it.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import re
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.numpy
from tqdm import tqdm

from ldm_lightning.artifact import file_checksum, replace_file, set_aside, sweep
from ldm_lightning.errors import UserError

__all__ = ["Manifest", "Shards", "Writer", "check_folder", "read_manifest", "read_samples", "verify"]

MANIFEST = "manifest.json"
_KIND = "latents"
_IDENTITY = ("first_stage", "transform", "data")
_RECIPE = (*_IDENTITY, "dtype", "shape", "count", "shard_size")
# Our files are known by names that carry a checksum of their content.
_SHARD = re.compile(r"latents-\d{5,}-[0-9a-f]{16}\.npy")
_ASIDE = re.compile(r"latents-\d{5,}-[0-9a-f]{16}-\d+\.npy")  # a damaged shard that was made again
_BEGUN = (MANIFEST, "first_stage")  # what a cache without a shard may hold, beside damaged ones


@dataclass(frozen=True)
class Manifest:
    """What a cache holds.

    Attributes:
        first_stage: checksum of the weights that encoded it.
        transform: of the pictures, in words.
        data: fingerprint of pictures, labels and captions in order, transform and split.
        dtype: of the latents, ``float16`` or ``float32``.
        shape: (views, P, *space) of a sample; view 1 is of its mirror image, P are the channels of a packed posterior.
        count: samples.
        shard_size: samples of each shard but the last.
        class_names: by label.
        config: the configuration of the pictures, plain values.
        files: checksum by path relative to the folder; None while they are being made.
    """

    first_stage: str
    transform: str
    data: str
    dtype: str
    shape: tuple[int, ...]
    count: int
    shard_size: int
    class_names: tuple[str, ...]
    config: Mapping[str, Any]
    files: Mapping[str, str] | None = None

    @property
    def key(self) -> str:
        """What decides the latents: hash of first stage, transform and data."""
        return _hash({name: getattr(self, name) for name in _IDENTITY})

    @property
    def shards(self) -> int:
        """Number of shards."""
        return -(-self.count // self.shard_size)

    def encode(self) -> bytes:
        """As JSON, with its key and a checksum of its own."""
        content = {"kind": _KIND, "key": self.key, **asdict(self)}
        return json.dumps({**content, "checksum": _hash(content)}, indent=2).encode()


def _hash(content: Any) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def read_manifest(root: Path, *, complete: bool = True) -> Manifest:
    """Read and verify the manifest of a cache.

    Args:
        root: the cache's folder.
        complete: whether a cache that is still being made is refused.

    Raises:
        UserError: there is none, or it is damaged, of another kind, or incomplete.
    """
    path = root / MANIFEST
    if not path.is_file():
        below = root / "latents"  # of a run folder
        found = (below / MANIFEST).is_file()
        mend = f"did you mean {below}?" if found else f"make them by ldm encode run=FIRST_STAGE output={root}"
        raise UserError(f"{root} holds no latents: {mend}")
    try:
        content = json.loads(path.read_bytes())
        kind = content["kind"]
    except (ValueError, KeyError, TypeError):
        raise UserError(f"{path} is damaged: delete {root} and encode again") from None
    if kind != _KIND:
        raise UserError(f"{root} holds no latents but a {kind} model: give the folder that ldm encode made")
    checksum, key = content.pop("checksum", None), content.get("key")
    try:
        fields = {name: value for name, value in content.items() if name not in ("kind", "key")}
        fields |= {"shape": tuple(fields["shape"]), "class_names": tuple(fields["class_names"])}
        manifest = Manifest(**fields)
    except (KeyError, TypeError):
        raise UserError(f"{path} is damaged, or of another version: delete {root} and encode again") from None
    if (checksum, key) != (_hash(content), manifest.key):
        raise UserError(f"{path} has been damaged or edited (wrong checksum): delete {root} and encode again")
    if complete and manifest.files is None:
        done = len(_shards(root))
        raise UserError(
            f"{root} is incomplete ({done} of {manifest.shards} shards): repeat the ldm encode of it, which goes on"
        )
    return manifest


def verify(root: Path, manifest: Manifest) -> None:
    """Compare every file with its checksum, in threads: a second or so a gigabyte and processor.

    All at once and before training, rather than each file when it is first touched: in a random order, that would be
    the first batch.

    Raises:
        UserError: a file is missing or differs in any bit.
    """
    files = manifest.files or {}
    for name, state in _states(root, files, "verifying latents"):
        if state != files[name]:
            what = "is missing" if state is None else "is damaged (wrong checksum)"
            raise UserError(f"{root}: {name} {what}: repeat the ldm encode that made it, which mends it")


def _states(root: Path, names: Iterable[str], title: str) -> Iterator[tuple[str, str | None]]:
    """Names with the checksum that each file really has; None where there is none."""
    names = list(names)

    def state(name: str) -> str | None:
        return file_checksum(root / name) if (root / name).is_file() else None

    with ThreadPoolExecutor() as pool, tqdm(total=len(names), desc=title, unit="file", delay=2) as bar:
        for pair in zip(names, pool.map(state, names), strict=True):
            bar.update()
            yield pair


def read_samples(root: Path, manifest: Manifest) -> dict[str, np.ndarray]:
    """What is known of the samples beside their latents.

    Returns:
        ``hash`` (N, 16) uint8; ``split_key`` (N, 16) uint8 where it is another; ``label`` (N,) int64 if they are
        labelled; what :func:`read_texts` reads if there are captions.
    """
    (name,) = (name for name in manifest.files or {} if name.startswith("samples-"))
    return dict(safetensors.numpy.load_file(root / name))


def encode_texts(texts: Sequence[tuple[str, ...]]) -> dict[str, np.ndarray]:
    """Captions of all samples as arrays, which :func:`read_texts` turns back.

    Returns:
        ``caption``, the bytes of all texts; ``caption_end`` (M,) int64, where each ends; and, unless each sample has
        one or an empty one, ``caption_count`` (N,) int64, how many each has.
    """
    several = any(len(own) > 1 for own in texts)
    flat = [text.encode() for own in texts for text in (own if several else own or ("",))]
    arrays: dict[str, np.ndarray] = {
        "caption": np.frombuffer(b"".join(flat), np.uint8),
        "caption_end": np.cumsum([len(text) for text in flat], dtype=np.int64),
    }
    if several:
        arrays["caption_count"] = np.array([len(own) for own in texts], dtype=np.int64)
    return arrays


def read_texts(samples: Mapping[str, np.ndarray]) -> list[tuple[str, ...]] | None:
    """Captions of all samples from the arrays of :func:`encode_texts`; None when there are none."""
    if "caption" not in samples:
        return None
    content, ends = samples["caption"].tobytes(), samples["caption_end"].tolist()
    flat = [content[start:stop].decode() for start, stop in pairwise([0, *ends])]
    if "caption_count" not in samples:
        return [(text,) if text else () for text in flat]
    stops = np.cumsum(samples["caption_count"]).tolist()
    return [tuple(flat[start:stop]) for start, stop in pairwise([0, *stops])]


class Shards:
    """The latents of a complete cache, mapped into memory: processes on one machine share one copy.

    Args:
        root: the cache's folder.
        manifest: its manifest.
    """

    def __init__(self, root: Path, manifest: Manifest) -> None:
        self.root, self.manifest = root, manifest
        self.views, *self.shape = manifest.shape
        names = sorted(
            (name for name in manifest.files or {} if name.startswith("latents-")),
            key=lambda name: int(name.split("-")[1]),
        )
        # Rows of one view of one sample each; as plain arrays, which are indexed faster than np.memmap.
        mapped = (np.asarray(np.load(root / name, mmap_mode="r")) for name in names)
        self.rows = [array.reshape(len(array) * self.views, -1) for array in mapped]

    def __reduce__(self) -> tuple[Any, ...]:
        return Shards, (self.root, self.manifest)  # a worker process maps the files again

    def take(self, index: np.ndarray, view: np.ndarray | int = 0) -> np.ndarray:
        """(B, P, *space) latents of the samples ``index`` (B,), each in its ``view``."""
        row = index * self.views + view
        order = np.argsort(row)  # a shard at a time, and in each from front to back
        row = row[order]
        rows_each = self.manifest.shard_size * self.views
        found = np.empty((len(row), self.rows[0].shape[1]), dtype=self.rows[0].dtype)
        cuts = [0, *(np.flatnonzero(np.diff(row // rows_each)) + 1).tolist(), len(row)]
        for start, stop in pairwise(cuts):
            number = int(row[start]) // rows_each
            found[order[start:stop]] = self.rows[number][row[start:stop] - number * rows_each]
        return found.reshape(len(row), *self.shape)


class Writer:
    """Makes a cache, or goes on with one.

    Args:
        root: the folder, which exists.
        manifest: what the cache is to hold, still without files.

    Attributes:
        missing: numbers of the shards that are still to be written.

    Raises:
        UserError: see `check_folder`.
    """

    def __init__(self, root: Path, manifest: Manifest) -> None:
        self.root, self.manifest = root, manifest
        check_folder(root, manifest)
        sweep(root)
        self._shards: dict[int, tuple[str, str]] = {}
        for name, checksum in _states(root, _shards(root), "verifying what is there"):
            number = int(name.split("-")[1])
            if checksum is not None and name == _shard_name(number, checksum) and number not in self._shards:
                self._shards[number] = name, checksum
            else:
                kept = set_aside(root / name).name
                warnings.warn(
                    f"{root / name} is damaged or of no use: it is kept as {kept}, and made again", stacklevel=2
                )
        self.missing = [number for number in range(manifest.shards) if number not in self._shards]
        if self.missing:
            replace_file(root / MANIFEST, manifest.encode())

    def samples(self, number: int) -> range:
        """Global indices of the samples of shard ``number``."""
        start = number * self.manifest.shard_size
        return range(start, min(start + self.manifest.shard_size, self.manifest.count))

    def write(self, number: int, latents: np.ndarray) -> None:
        """Write shard ``number``, an array (n, views, P, *space)."""
        buffer = io.BytesIO()
        np.save(buffer, latents)
        checksum = hashlib.sha256(buffer.getbuffer()).hexdigest()
        name = _shard_name(number, checksum)
        replace_file(self.root / name, buffer.getvalue())
        self._shards[number] = name, checksum

    def finish(self, samples: Mapping[str, np.ndarray], folder: str) -> None:
        """Complete the cache.

        Args:
            samples: see `read_samples`.
            folder: name of a folder beside the shards whose files belong to the cache.
        """
        content = safetensors.numpy.save(dict(samples))
        checksum = hashlib.sha256(content).hexdigest()
        replace_file(self.root / f"samples-{checksum[:16]}.safetensors", content)
        files = dict(self._shards[number] for number in range(self.manifest.shards))
        files[f"samples-{checksum[:16]}.safetensors"] = checksum
        for path in sorted((self.root / folder).rglob("*")):
            if path.is_file():
                files[path.relative_to(self.root).as_posix()] = file_checksum(path)
        replace_file(self.root / MANIFEST, replace(self.manifest, files=files).encode())


def _shards(root: Path) -> list[str]:
    """Names of the shards in a folder, whole or not."""
    return sorted(path.name for path in root.iterdir() if _SHARD.fullmatch(path.name) and path.is_file())


def _shard_name(number: int, checksum: str) -> str:
    return f"latents-{number:05d}-{checksum[:16]}.npy"


def check_folder(root: Path, wanted: Manifest) -> None:
    """Check that a cache may be made, or gone on with, in a folder, which may be missing.

    Raises:
        UserError: it holds other latents, or something else.
    """
    # Before the first shard there is nothing that another beginning could spoil.
    if not (root / MANIFEST).exists() or not _shards(root):
        names = [path.name for path in root.iterdir()] if root.is_dir() else []
        strange = any(not (name.startswith(".") or name in _BEGUN or _ASIDE.fullmatch(name)) for name in names)
        if root.is_file() or strange or not _is_begun(root):
            raise UserError(f"output={root} holds something else: give a folder of its own")
        return
    there = read_manifest(root, complete=False)
    changed = [name for name in _RECIPE if getattr(there, name) != getattr(wanted, name)]
    if changed:
        shown = "; ".join(f"{name}: {_short(there, name)} -> {_short(wanted, name)}" for name in changed)
        raise UserError(
            f"{root} already holds latents of another origin ({shown}): choose another output=, or delete it"
        )


def _is_begun(root: Path) -> bool:
    """Whether the manifest in a folder without a shard, if there is one, is that of a cache."""
    if not os.path.lexists(root / MANIFEST):
        return True
    try:
        read_manifest(root, complete=False)
    except UserError:
        return False
    return True


def _short(manifest: Manifest, name: str) -> str:
    value = str(getattr(manifest, name))
    return value[:12] if name in ("first_stage", "data") else value
