"""Fashion-MNIST (Xiao et al. 2017, arXiv:1708.07747): 70,000 grey pictures of clothes in ten classes.

The pictures are 28 x 28, in the IDX format of the original MNIST: a big-endian header (two zero bytes, the type code 8
for uint8, the number of dimensions, then each dimension in 32 bits), followed by the raw bytes.
"""

from __future__ import annotations

import gzip
import hashlib
import urllib.request
import zlib
from functools import partial
from pathlib import Path

import numpy as np
from tqdm import tqdm

from ldm_lightning.artifact import replacing
from ldm_lightning.data.array import ArraySource
from ldm_lightning.data.cache import cache_folder
from ldm_lightning.errors import UserError, nearest

__all__ = ["FashionMnist"]

_CLASSES = (
    "T-shirt/top",
    "Trouser",
    "Pullover",
    "Dress",
    "Coat",
    "Sandal",
    "Shirt",
    "Sneaker",
    "Bag",
    "Ankle boot",
)
_PARTS = {"train": ("train",), "test": ("t10k",), "all": ("train", "t10k")}
_PUBLISHER = "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/"
# MD5 of the files as published; the Debian package holds the same data, packed again.
_CHECKSUMS = {
    "train-images-idx3-ubyte.gz": "8d4fb7e6c68d591d4c3dfef9ec88bf0d",
    "train-labels-idx1-ubyte.gz": "25c81989df183df01b3e8a0aad5dffbe",
    "t10k-images-idx3-ubyte.gz": "bef4ecab320f06d8554ea6380940ec79",
    "t10k-labels-idx1-ubyte.gz": "bb300cfdad3c16e7a12a480ee83cd310",
}
_DEBIAN = Path("/usr/share/datasets/fashion-mnist")
_MEND = "install the Debian package dataset-fashion-mnist, or set data.source.root to a folder with the four IDX files"


def _read_idx(path: Path, dimensions: int) -> np.ndarray:
    """The uint8 array in an IDX file, gzipped or not."""
    try:
        content = path.read_bytes()
        content = gzip.decompress(content) if path.suffix == ".gz" else content
        header = np.frombuffer(content, dtype=">u4", count=1 + dimensions)
        if header[0] != 0x800 + dimensions:
            raise ValueError(f"no IDX file of {dimensions} dimensions")
        return np.frombuffer(content, dtype=np.uint8, offset=header.nbytes).reshape(header[1:].tolist())
    except (OSError, EOFError, zlib.error, ValueError) as error:
        raise UserError(f"{path} is damaged ({error}); delete it and get it again, or {_MEND}") from error


def _find(folder: Path, stem: str) -> Path | None:
    """The IDX file of that name in the folder, unpacked or gzipped."""
    return next((path for path in (folder / stem, folder / f"{stem}.gz") if path.is_file()), None)


def _download(name: str, folder: Path, base_url: str) -> Path:
    """Fetch one published file into the folder, where it appears only if its checksum is right."""
    path, md5 = folder / name, hashlib.md5(usedforsecurity=False)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with urllib.request.urlopen(base_url + name, timeout=30) as response, replacing(path) as file:
            size = int(response.headers.get("Content-Length") or 0)
            with tqdm(total=size or None, desc=name, unit="B", unit_scale=True) as bar:
                while chunk := response.read(1 << 16):
                    md5.update(chunk)
                    file.write(chunk)
                    bar.update(len(chunk))
            if md5.hexdigest() != _CHECKSUMS[name]:
                raise UserError(f"{base_url + name} has the wrong checksum; try again, or {_MEND}")
    except OSError as error:
        raise UserError(f"{base_url + name} could not be downloaded ({error}); {_MEND}") from error
    return path


def _load(root: str | None, part: str, base_url: str) -> tuple[np.ndarray, np.ndarray]:
    arrays = []
    for stem, dimensions in (("images-idx3-ubyte", 3), ("labels-idx1-ubyte", 1)):
        files = []
        for prefix in _PARTS[part]:
            name = f"{prefix}-{stem}"
            if root is not None:
                file = _find(Path(root).expanduser(), name)
                if file is None:
                    raise UserError(f"{root} holds no {name} or {name}.gz; {_MEND}")
            else:
                cache = cache_folder() / "fashion-mnist"
                file = _find(_DEBIAN, name) or _find(cache, name) or _download(f"{name}.gz", cache, base_url)
            files.append(_read_idx(file, dimensions))
        arrays.append(np.concatenate(files))
    pictures, labels = arrays
    if len(pictures) != len(labels):
        raise UserError(f"Fashion-MNIST holds {len(pictures)} pictures but {len(labels)} labels; {_MEND}")
    return pictures, labels


def FashionMnist(root: str | None = None, part: str = "train", base_url: str = _PUBLISHER) -> ArraySource:
    """Return Fashion-MNIST as 28 x 28 grey pictures.

    Args:
        root: folder with the IDX files, gzipped or not. None looks into the place of the Debian package
            ``dataset-fashion-mnist``, then into the cache folder, and then downloads into the latter.
        part: ``"train"`` (60,000 pictures), ``"test"`` (10,000) or ``"all"``, in this order.
        base_url: where to download from.

    `prepare` raises UserError when the files are missing or damaged or cannot be downloaded.

    Raises:
        UserError: there is no such part.
    """
    if part not in _PARTS:
        raise UserError(f"data.source.part={part} is none of {', '.join(_PARTS)}{nearest(part, _PARTS)}")
    return ArraySource("fashion_mnist", _CLASSES, partial(_load, root, part, base_url))
