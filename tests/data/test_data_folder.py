from __future__ import annotations

import json
import shutil
import warnings

import numpy as np
import pytest
from PIL import Image

from ldm_lightning.data import scan
from ldm_lightning.data.folder import ImageFolder
from ldm_lightning.data.source import Source
from ldm_lightning.errors import UserError


def prepared(root, min_size: int = 1, **options) -> ImageFolder:
    source = ImageFolder(str(root), **options)
    source.prepare(min_size)
    return source


def test_finds_pictures_at_any_depth_in_order(pictures):
    root = pictures("b/2.PNG", "a/deep/er/1.JpG", "c/ünïcödé 画像.webp", ".hidden.png", ".git/x.png", "a/.x.png")
    (root / "a" / "notes.txt").write_text("no picture")
    source: Source = prepared(root)
    assert source.files == ["a/deep/er/1.JpG", "b/2.PNG", "c/ünïcödé 画像.webp"]
    assert source.name == "pictures"
    assert source.class_names == ("a", "b", "c")
    assert [source.label(i) for i in range(len(source))] == [0, 1, 2]
    assert source.captions(0) == ()


def test_pictures_outside_folders_make_it_unlabelled(pictures):
    source = prepared(pictures("a/1.png", "2.png"))
    assert source.class_names == ()
    assert source.label(0) is None


def test_pixels_and_upright_sizes(pictures, noise):
    root = pictures("a.png")
    exif = Image.Exif()
    exif[0x0112] = 8
    noise(1, (40, 20)).save(root / "b.jpg", exif=exif)
    source = prepared(root, min_size=12)
    assert np.array_equal(source.picture(0), noise(0))
    assert source.picture(1).size == (20, 40)


def test_folder_links_are_followed_once(pictures):
    root = pictures("a/1.png")
    (root / "loop").symlink_to(root, target_is_directory=True)
    elsewhere = root.parent / "elsewhere"
    shutil.copytree(root / "a", elsewhere)
    (root / "b").symlink_to(elsewhere, target_is_directory=True)
    (elsewhere / "back").symlink_to(root / "a", target_is_directory=True)
    assert prepared(root).files == ["a/1.png", "b/1.png"]


def test_content_hash_follows_the_content(pictures):
    root = pictures("1.png", "2.png")
    shutil.copy(root / "1.png", root / "copy.png")
    source = prepared(root)
    hashes = [source.content_hash(i) for i in range(3)]
    assert [len(h) for h in hashes] == [16, 16, 16]
    assert hashes[0] == hashes[2] != hashes[1]


def spoil(root) -> list[str]:
    """Add files that call themselves pictures and are not."""
    (root / "empty.png").touch()
    (root / "text.png").write_text("this is no picture")
    whole = (root / "0.png").read_bytes()
    (root / "half.png").write_bytes(whole[: len(whole) // 2])
    Image.new("RGB", (64, 64)).save(root / "noise.jpg", quality=95)
    content = (root / "noise.jpg").read_bytes()
    (root / "noise.jpg").write_bytes(content[: len(content) - 40])
    (root / "nowhere.png").symlink_to(root / "missing.png")
    return ["empty.png", "half.png", "noise.jpg", "nowhere.png", "text.png"]


def test_bad_pictures_are_left_out_and_named(pictures):
    root = pictures(*(f"{i}.png" for i in range(5)))
    bad = spoil(root)
    with pytest.warns(UserWarning, match="5 of 10 pictures cannot be read") as caught:
        source = prepared(root, max_bad_fraction=0.5)
    assert len(caught) == 1
    assert all(name in str(caught[0].message) for name in bad)
    assert source.files == [f"{i}.png" for i in range(5)]


def test_only_five_bad_pictures_are_named(pictures):
    root = pictures("ok.png")
    for i in range(7):
        (root / f"bad{i}.png").touch()
    with pytest.warns(UserWarning, match=r"7 of 8 .*bad4\.png \(.*\), \.\.\.; they") as caught:
        prepared(root, max_bad_fraction=0.9)
    assert "bad5" not in str(caught[0].message)


def test_too_many_bad_pictures_are_an_error(pictures):
    root = pictures(*(f"{i}.png" for i in range(5)))
    spoil(root)
    with pytest.raises(UserError, match=r"empty\.png.*remove them or raise data\.source\.max_bad_fraction") as caught:
        prepared(root)
    assert "\n" not in str(caught.value)


def test_nothing_but_bad_pictures_is_an_error(pictures):
    root = pictures()
    (root / "empty.png").touch()
    with pytest.raises(UserError, match="1 of 1 pictures cannot be read"):
        prepared(root, max_bad_fraction=1.0)


def test_small_pictures(pictures, noise):
    root = pictures(*(f"{i}.png" for i in range(9)), size=(20, 30))
    noise(0, (40, 19)).save(root / "flat.png")
    with pytest.warns(UserWarning, match=r"1 of 10 pictures are smaller than 20 pixels: flat\.png \(40x19\); they"):
        source = prepared(root, min_size=20, max_bad_fraction=0.1)
    assert "flat.png" not in source.files
    with pytest.raises(UserError, match=r"smallest side is 19: set data\.transform\.upscale=true"):
        prepared(root, min_size=20, max_bad_fraction=0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert len(prepared(root, min_size=19)) == 10


def test_second_start_reads_nothing(pictures, cache, monkeypatch):
    root = pictures("a/1.png", "b/2.png")
    before = {path.relative_to(root) for path in root.rglob("*")}
    first = prepared(root)
    assert {path.relative_to(root) for path in root.rglob("*")} == before  # the folder itself stays untouched
    assert list((cache / "scans").iterdir())
    monkeypatch.setattr(scan, "open_picture", lambda content: pytest.fail("a known picture was read again"))
    second = prepared(root)
    assert second.files == first.files
    assert [second.content_hash(i) for i in range(2)] == [first.content_hash(i) for i in range(2)]


def test_changed_and_new_pictures_are_read_again(pictures, noise):
    root = pictures("1.png", "2.png")
    before = prepared(root)
    noise(7, (30, 30)).save(root / "2.png")
    noise(8).save(root / "3.png")
    after = prepared(root)
    assert after.files == ["1.png", "2.png", "3.png"]
    assert after.content_hash(0) == before.content_hash(0)
    assert after.content_hash(1) != before.content_hash(1)


def test_damaged_cache_is_ignored(pictures, cache):
    root = pictures("1.png")
    prepared(root)
    (file,) = (cache / "scans").iterdir()
    for content in ("", "[]", '{"1.png": 3}', '{"1.png": ["x", [1, 2, 3, 4, 5, 6]]}'):
        file.write_text(content)
        assert len(prepared(root)) == 1


def test_unwritable_cache_is_only_a_warning(pictures, cache):
    cache.parent.write_text("a file where the folder should be")
    with pytest.warns(UserWarning, match="could not be kept"):
        assert len(prepared(pictures("1.png"))) == 1


def test_prepare_is_idempotent(pictures, monkeypatch):
    source = prepared(pictures("1.png"))
    monkeypatch.setattr(scan, "open_picture", lambda content: pytest.fail("prepared twice"))
    source.prepare()
    assert len(source) == 1


def test_missing_folder_file_and_empty_folder(tmp_path):
    (tmp_path / "file").touch()
    (tmp_path / "empty").mkdir()
    for name, message in (("nowhere", "does not exist"), ("file", "is a file"), ("empty", "holds no pictures")):
        with pytest.raises(UserError, match=message):
            prepared(tmp_path / name)


def test_picture_that_breaks_after_the_scan(pictures):
    root = pictures("1.png")
    source = prepared(root)
    (root / "1.png").write_bytes(b"gone")
    with pytest.raises(UserError, match=r"1\.png has become unreadable"):
        source.picture(0)


TABLES = {
    "c.csv": 'file,caption,extra\na/1.png,"a cat, black",x\nb/2.png,Hündchen,\n',
    "c.tsv": "caption\tfile\na cat, black\t./a/1.png\nHündchen\tb/2.png\n",
    "c.jsonl": "".join(
        json.dumps({"file": file, "caption": caption}) + "\n\n"
        for file, caption in (("a/1.png", "a cat, black"), ("b/2.png", "Hündchen"))
    ),
}


@pytest.mark.parametrize("name", TABLES)
def test_captions(pictures, name):
    root = pictures("a/1.png", "b/2.png", "b/3.png")
    (root / name).write_text(TABLES[name], encoding="utf-8-sig" if name == "c.csv" else "utf-8")
    source = prepared(root, captions=name)
    assert source.has_captions
    assert [source.captions(i) for i in range(3)] == [("a cat, black",), ("Hündchen",), ()]
    assert [source.label(i) for i in range(3)] == [0, 1, 1]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("c.csv", "file,caption\na/1.pgn,x\n", r"c\.csv:2 names no picture: 'a/1\.pgn'; did you mean 'a/1\.png'"),
        ("c.csv", "file,captions\na/1.png,x\n", "no column 'caption'.*did you mean 'captions'"),
        ("c.csv", b"file,caption\na/1.png,\xff\n", "UTF-8"),
        ("c.jsonl", '{"file": "a/1.png"}\n', "no column 'caption'"),
        ("c.jsonl", "{broken\n", "is not a .jsonl table"),
        ("c.jsonl", "[1, 2]\n", "is not a .jsonl table"),
        ("c.txt", "", r"none of \.csv"),
    ],
)
def test_wrong_captions(pictures, name, content, message):
    root = pictures("a/1.png")
    (root / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(UserError, match=message) as caught:
        prepared(root, captions=name)
    assert "\n" not in str(caught.value)


def test_missing_captions_file(pictures):
    with pytest.raises(UserError, match=r"nowhere\.csv is neither below data\.root .* nor in the current folder"):
        prepared(pictures("a/1.png"), captions="nowhere.csv")


def test_caption_of_a_picture_left_out_is_no_mistake(pictures):
    root = pictures("1.png")
    (root / "bad.png").touch()
    (root / "c.csv").write_text("file,caption\nbad.png,x\n1.png,y\n")
    with pytest.warns(UserWarning, match=r"bad\.png"):
        source = prepared(root, captions="c.csv", max_bad_fraction=0.5)
    assert source.captions(0) == ("y",)
