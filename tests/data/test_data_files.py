"""An archive is the folder it was packed of: same pictures, classes, captions, fingerprint; any damage is noticed."""

from __future__ import annotations

import gzip
import io
import os
import pickle
import tarfile
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
import torch
from PIL import Image

from ldm_lightning.data.datamodule import DataModule
from ldm_lightning.data.files import open_files
from ldm_lightning.data.folder import ImageFolder
from ldm_lightning.data.picture import ImageTransform
from ldm_lightning.data.scan import content_hash
from ldm_lightning.errors import UserError

Make = Callable[..., Path]


def pack(path: Path, contents: Mapping[str, bytes], method: int = zipfile.ZIP_DEFLATED) -> Path:
    """An archive of files by name, in that order."""
    if path.suffix == ".zip":
        with zipfile.ZipFile(path, "w", method) as archive:
            for name, content in contents.items():
                archive.writestr(name, content)
    else:
        with tarfile.open(path, "w") as archive:
            for name, content in contents.items():
                info = tarfile.TarInfo(name)
                info.size = len(content)
                archive.addfile(info, io.BytesIO(content))
    return path


def contents(root: Path, before: str = "") -> dict[str, bytes]:
    return {before + path.relative_to(root).as_posix(): path.read_bytes() for path in root.rglob("*") if path.is_file()}


def png(noise: Callable[[int], Image.Image], seed: int) -> bytes:
    file = io.BytesIO()
    noise(seed).save(file, "PNG")
    return file.getvalue()


def data(root: Path, captions: str | None = None, workers: int = 0) -> DataModule:
    source = ImageFolder(str(root), captions)
    return DataModule(source, ImageTransform(8, crop="random", flip=True), 2, workers, validation=0, caption_length=12)


@pytest.mark.parametrize("before", ["", "pictures/"])
@pytest.mark.parametrize("ending", [".zip", ".tar"])
def test_an_archive_is_the_folder_it_was_packed_of(pictures: Make, tmp_path: Path, ending: str, before: str) -> None:
    root = pictures("b/2.png", "a/1.png", "a/deep/3.png", "b/4.jpg")
    (root / "c.csv").write_text("file,caption\n" + "".join(f"{name},{name}\n" for name in contents(root)))
    path = pack(tmp_path / f"packed{ending}", {"__MACOSX/a/._1.png": b"fork", **contents(root, before)})
    ours, theirs = data(path, "c.csv", workers=2), data(root, "c.csv")
    assert (ours.fingerprint, ours.class_names) == (theirs.fingerprint, ("a", "b"))
    for batch, expected in zip(ours.train_dataloader(), theirs.train_dataloader(), strict=True):
        assert torch.equal(batch.x, expected.x)
        assert torch.equal(batch.condition["caption"], expected.condition["caption"])
    assert ours.source.captions(0) == ("a/1.png",)


def test_a_shard_of_webdataset(tmp_path: Path, noise: Callable, cache: Path) -> None:
    parts = {".png": lambda i: png(noise, i), ".cls": lambda i: b"%d\n" % (9 + i % 2), ".txt": lambda i: b"text %d" % i}
    path = pack(tmp_path / "shard.tar", {f"./{i:03d}{end}": part(i) for i in range(4) for end, part in parts.items()})
    source = ImageFolder(str(path), ".txt")
    source.prepare()
    assert source.class_names == ("9", "10")  # in the order of numbers
    assert [source.label(i) for i in range(4)] == [0, 1, 0, 1]
    assert [source.captions(i) for i in range(4)] == [(f"text {i}",) for i in range(4)]
    assert source.picture(2).tobytes() == noise(2).tobytes()
    assert set(tmp_path.iterdir()) == {path, cache.parent}  # nothing was unpacked
    assert pickle.loads(pickle.dumps(source)).picture(3).size == (12, 12)  # as for a worker


def test_pictures_without_the_class_of_others_are_left_out(pictures: Make) -> None:
    root = pictures("a/1.png", "a/2.png", "b/3.png")
    for name, text in (("a/1.cls", "dog"), ("b/3.cls", "cat"), ("a/2.cls", " ")):
        (root / name).write_text(text)
    source = ImageFolder(str(root))
    with pytest.warns(UserWarning, match=r"1 of 3 pictures have no class: a/2\.png; they are left out"):
        source.prepare()
    assert (source.files, source.class_names) == (["a/1.png", "b/3.png"], ("cat", "dog"))
    assert [source.label(i) for i in range(2)] == [1, 0]
    assert source.content_hash(1) == content_hash((root / "b/3.png").read_bytes())
    (root / "b/3.cls").unlink()
    with pytest.raises(UserError, match=r"2 of 3 pictures have no class: .*\.cls file.*max_bad_fraction"):
        ImageFolder(str(root)).prepare()


@pytest.mark.parametrize("ending", [".zip", ".tar"])
def test_names_in_an_archive_lead_nowhere(tmp_path: Path, noise: Callable, ending: str) -> None:
    names = ["../out.png", "a/../../out.png", "/abs.png", ".hidden.png", "b\\c.png", "ok.png"]
    path = pack(tmp_path / f"bad{ending}", {name: png(noise, i) for i, name in enumerate(names)})
    files = open_files(path)
    assert list(files.names) == sorted(["abs.png", "b/c.png" if ending == ".zip" else "b\\c.png", "ok.png"])
    assert files.read("ok.png") == png(noise, 5)
    assert not (tmp_path / "out.png").exists()


def test_a_hard_link_in_a_tar_is_the_file_again(tmp_path: Path, noise: Callable) -> None:
    (tmp_path / "1.png").write_bytes(png(noise, 1))
    os.link(tmp_path / "1.png", tmp_path / "2.png")
    with tarfile.open(tmp_path / "x.tar", "w") as archive:
        for name in ("1.png", "2.png"):
            archive.add(tmp_path / name, name)
        assert archive.getmember("2.png").islnk()
    files = open_files(tmp_path / "x.tar")
    assert files.read("2.png") == files.read("1.png") == png(noise, 1)


def _third_header(path: Path) -> int:
    with tarfile.open(path) as archive:
        return archive.getmembers()[2].offset


def _cut_between_files(path: Path) -> Path:
    path.write_bytes(path.read_bytes()[: _third_header(path)])
    return path


def _header_overwritten(path: Path) -> Path:
    content, start = bytearray(path.read_bytes()), _third_header(path)
    content[start : start + 512] = b"x" * 512
    path.write_bytes(content)
    return path


def _one_after_the_other(path: Path) -> Path:
    path.write_bytes(path.read_bytes() * 2)
    return path


def _cut(path: Path) -> Path:
    path.write_bytes(path.read_bytes()[:-700])
    return path


def _compressed(path: Path) -> Path:
    packed = path.with_name("x.tar.gz")
    packed.write_bytes(gzip.compress(path.read_bytes()))
    return packed


@pytest.mark.parametrize(
    ("ending", "spoil", "message"),
    [
        (".tar", _cut_between_files, "cannot be read .*no end, or goes on behind it, after 2 files"),
        (".tar", _header_overwritten, "cannot be read .*after 2 files"),
        (".tar", _one_after_the_other, "cannot be read .*goes on behind it, after 4 files"),
        (".tar", _compressed, "compressed as a whole: unpack it"),
        (".zip", _cut, "cannot be read"),
        (".zip", lambda path: pack(path, {"1.png": b"x"}, zipfile.ZIP_LZMA), "another method than deflate"),
        (".zip", lambda path: pack(path, {"1.doc": b"x"}), r"holds no pictures; expected files ending in"),
    ],
)
def test_no_part_of_a_damaged_archive_is_lost_without_a_word(
    tmp_path: Path, noise: Callable, ending: str, spoil: Callable[[Path], Path], message: str
) -> None:
    path = pack(tmp_path / f"x{ending}", {f"{i}.png": png(noise, i) for i in range(4)})
    ImageFolder(str(path)).prepare()  # whole
    with pytest.raises(UserError, match=message) as caught:
        ImageFolder(str(spoil(path))).prepare()
    assert "\n" not in str(caught.value)


def test_a_damaged_member_is_counted_and_named(tmp_path: Path, noise: Callable) -> None:
    path = pack(tmp_path / "x.zip", {f"{i}.png": png(noise, i) for i in range(3)}, zipfile.ZIP_STORED)
    content = bytearray(path.read_bytes())
    content[content.index(png(noise, 1)) + 60] ^= 1
    path.write_bytes(content)
    source = ImageFolder(str(path))
    with pytest.warns(UserWarning, match=r"1 of 3 pictures cannot be read: 1\.png \(wrong checksum\)"):
        source.prepare()
    assert source.files == ["0.png", "2.png"]


def test_an_archive_that_changes_under_way_is_noticed(tmp_path: Path, noise: Callable) -> None:
    path = pack(tmp_path / "x.tar", {f"{i}.png": png(noise, i) for i in range(3)})
    source = ImageFolder(str(path))
    source.prepare()
    pack(path, {f"{i}.png": png(noise, 7 + i) for i in range(4)})
    with pytest.raises(UserError, match=r"1\.png has become unreadable .*x\.tar has changed"):
        source.picture(1)


def test_a_folder_of_tables_says_how_to_read_it(tmp_path: Path) -> None:
    (tmp_path / "saved").mkdir()
    (tmp_path / "saved" / "data-00000-of-00001.arrow").touch()
    with pytest.raises(UserError, match=r"holds no pictures; it holds tables, .*data=huggingface data\.source\.path="):
        ImageFolder(str(tmp_path / "saved")).prepare()
