"""Captions as people write them: what is read as what, what is refused, which of several is drawn."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from ldm_lightning.data.captions import texts_of
from ldm_lightning.data.datamodule import DataModule
from ldm_lightning.data.dataset import PictureDataset, drawn_captions, encode_caption
from ldm_lightning.data.folder import ImageFolder
from ldm_lightning.data.latent_files import encode_texts, read_texts
from ldm_lightning.data.picture import ImageTransform
from ldm_lightning.errors import UserError


def folder(root: Path, captions: str | None, content: str | bytes = "", **options: object) -> ImageFolder:
    if captions is not None and captions not in (".txt", ".json"):
        (root / captions).write_bytes(content if isinstance(content, bytes) else content.encode())
    source = ImageFolder(str(root), captions, **options)  # type: ignore[arg-type]
    source.prepare()
    return source


def texts(source: ImageFolder) -> list[tuple[str, ...]]:
    return [source.captions(i) for i in range(len(source))]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("c.csv", "file,caption\n1.png,one\n2.png,two\n1.png,uno\n"),
        ("c.csv", "file;caption;who\n1.png;one;x\n2.png;two;y\n1.png;uno;\n"),
        ("metadata.csv", "file_name\ttext\n1.png\tone\n2.png\ttwo\n1.png\tuno\n"),
        ("c.csv", "file,caption\n1.png,one\n2.png,two\n1.png,uno\n".encode("utf-16")),
        ("metadata.jsonl", '{"file_name": "1.png", "text": ["one", "uno"]}\n{"file_name": "2.png", "text": "two"}\n'),
        ("c.jsonl", '{"file": "1.png", "caption": ["one", null, "uno"]}\r\n{"file": "2.png", "caption": "two"}'),
        ("c.csv", "file,caption\r1.png,one\r2.png,two\r1.png,uno\r"),
    ],
)
def test_several_captions_and_the_spellings_of_others(
    pictures: Callable[..., Path], name: str, content: str | bytes
) -> None:
    assert texts(folder(pictures("1.png", "2.png"), name, content)) == [("one", "uno"), ("two",)]


def test_backslashes_and_absolute_paths_inside_the_root(pictures: Callable[..., Path]) -> None:
    root = pictures("a/1.png", "a/2.png")
    rows = f"file,caption\na\\1.png,one\n{root / 'a' / '2.png'},two\n"
    assert texts(folder(root, "c.csv", rows)) == [("one",), ("two",)]


def test_a_text_file_beside_each_picture(pictures: Callable[..., Path]) -> None:
    root = pictures("a/1.png", "a/2.png")
    (root / "a/1.txt").write_text("a red, green and blue thing\n\nun truc\n")
    (root / "a/2.txt").write_text("two")
    assert texts(folder(root, ".txt")) == [("a red, green and blue thing", "un truc"), ("two",)]
    (root / "a/1.txt").unlink()
    (root / "a/2.txt").unlink()
    with pytest.raises(UserError, match=r"no picture in .* has a \.txt file beside it"):
        folder(root, ".txt")


def test_an_object_beside_each_picture(pictures: Callable[..., Path]) -> None:
    root = pictures("1.png", "2.png", "3.png")
    for name, content in (("1", {"caption": ["one", "uno"]}), ("2", {"text": "two"}), ("3", {"url": "x"})):
        (root / f"{name}.json").write_text(json.dumps(content))
    with pytest.warns(UserWarning, match=r"1 of 3 pictures have no caption: 3\.png"):
        source = folder(root, ".json")
    assert texts(source) == [("one", "uno"), ("two",), ()]
    for wrong, message in (("[1]", "holds no object"), ("{", "is no JSON"), ('{"caption": {}}', "no caption but {}")):
        (root / "2.json").write_text(wrong)
        with pytest.raises(UserError, match=rf"2\.json .*{message}"):
            folder(root, ".json")


def test_latin_1_is_read_when_it_is_named(pictures: Callable[..., Path]) -> None:
    root, content = pictures("1.png"), "file,caption\n1.png,Hündchen\n".encode("latin-1")
    with pytest.raises(UserError, match=r"not in UTF-8.*data\.source\.encoding=latin-1"):
        folder(root, "c.csv", content)
    assert texts(folder(root, "c.csv", content, encoding="latin-1")) == [("Hündchen",)]
    for encoding in ("no-such", "undefined"):
        with pytest.raises(UserError, match=rf"not in {encoding} "):
            folder(root, "c.csv", content, encoding=encoding)


def test_a_byte_order_mark_is_no_part_of_the_header(pictures: Callable[..., Path]) -> None:
    root, content = pictures("1.png"), "\ufefffile,caption\n1.png,one\n"
    for encoding in ("utf-8", "utf-16-le"):
        assert texts(folder(root, "c.csv", content.encode(encoding), encoding=encoding)) == [("one",)]


def test_what_only_python_takes_for_the_end_of_a_line_stands_in_captions(pictures: Callable[..., Path]) -> None:
    text = "one\u2028two\x85three"
    row = json.dumps({"file": "1.png", "caption": text}, ensure_ascii=False)
    assert texts(folder(pictures("1.png"), "c.jsonl", row)) == [(text,)]


def test_a_table_may_name_pictures_as_seen_from_its_own_folder(pictures: Callable[..., Path]) -> None:
    """As the ``metadata.csv`` of Hugging Face does; as seen from the root comes first."""
    root = pictures("1.png", "train/1.png", "train/2.png")
    rows = "file_name,text\n1.png,root\n2.png,two\ntrain/1.png,one\n"
    assert texts(folder(root, "train/metadata.csv", rows)) == [("root",), ("one",), ("two",)]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("c.csv", "file,caption\n1.png,a red, green and blue thing\n", r"c\.csv:2 has more fields.*in quotes"),
        ("c.csv", "file,caption,who\n1.png,one\n", r"c\.csv:2 has fewer fields"),
        ("c.csv", "file,caption,caption\n1.png,one,uno\n", "two columns are called 'caption'"),
        ("c.csv", "file,caption\n1.png,one\n".encode("utf-16-le"), "without its byte order mark.*utf-16-le"),
        ("c.jsonl", "[1, 2]\n", "line 1 holds no object"),
        ("c.csv", "\nfile,caption\n1.png,one\n", "only an empty header"),
        ("c.csv", "file,caption\n", "holds no captions below its header"),
        ("c.jsonl", '{"file": "1.png", "caption": {"en": "one"}}\n', r"column 'caption', holds no caption but \{'en'"),
        ("c.jsonl", '{"file": "1.png", "caption": ["one", 2]}\n', r"holds no caption but \['one', 2\]"),
        ("c.jsonl", '{"file": "1.png", "caption": 5}\n', "holds no caption but 5"),
    ],
)
def test_what_is_no_caption_is_refused(
    pictures: Callable[..., Path], name: str, content: str | bytes, message: str
) -> None:
    with pytest.raises(UserError, match=message) as caught:
        folder(pictures("1.png"), name, content)
    assert "\n" not in str(caught.value)


def test_nothing_is_no_text() -> None:
    assert texts_of(None, "") == texts_of(float("nan"), "") == texts_of(" ", "") == texts_of(["", "\t"], "") == ()
    assert texts_of("None", "") == ("None",)


def test_pictures_without_captions_are_counted(pictures: Callable[..., Path]) -> None:
    root = pictures(*(f"{number}.png" for number in range(6)))
    some = "file,caption\n0.png,zero\n1.png,one\n2.png,two\n3.png,\n"
    with pytest.raises(UserError, match=r"3 of 6 pictures have no caption: 3\.png, 4\.png, 5\.png.*max_uncaptioned"):
        folder(root, "c.csv", some)
    with pytest.warns(UserWarning, match=r"3 of 6 pictures have no caption.*with an empty one"):
        source = folder(root, "c.csv", some, max_uncaptioned=0.5)
    assert texts(source)[2:4] == [("two",), ()]


def test_a_table_is_looked_for_below_the_root_and_then_here(
    pictures: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root, here = pictures("1.png"), tmp_path / "here"
    here.mkdir()
    monkeypatch.chdir(here)
    (here / "c.csv").write_text("file,caption\n1.png,here\n")
    source = ImageFolder(str(root), "c.csv")
    source.prepare()
    assert source.captions(0) == ("here",)
    with pytest.warns(UserWarning, match=r"read from .*pictures/c\.csv, which differs from .*here/c\.csv"):
        source = folder(root, "c.csv", "file,caption\n1.png,below\n")
    assert texts(source) == [("below",)]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        monkeypatch.chdir(root)
        assert texts(folder(root, "c.csv", "file,caption\n1.png,same\n")) == [("same",)]


def test_cutting_is_announced(pictures: Callable[..., Path]) -> None:
    source = folder(pictures("1.png", "2.png"), "c.csv", "file,caption\n1.png,abcdé\n2.png,ab\n")
    data = DataModule(source, ImageTransform(8), batch_size=1, validation=0, caption_length=4)
    with pytest.warns(UserWarning, match=r"1 of 2 captions \(50.0%\) are longer .*=4 .*data\.caption_length=6 would"):
        data.setup()


def test_which_caption_is_drawn_is_a_matter_of_seed_epoch_and_sample(pictures: Callable[..., Path]) -> None:
    """Not of batches, ranks or workers; all are drawn alike often, and measuring takes the first."""

    def drawn(index: NDArray[np.int64], seed: int | None = 3, epoch: int = 0) -> NDArray[np.int64]:
        return drawn_captions(np.full(len(index), 3), seed, epoch, index)

    index = np.arange(3000)
    numbers = drawn(index)
    assert np.array_equal(numbers[1700:1710], drawn(index[1700:1710]))
    assert abs(np.bincount(numbers, minlength=3) - 1000).max() < 100
    assert 0.2 < (numbers == drawn(index, epoch=1)).mean() < 0.5
    assert not drawn(index, seed=None).any()

    source = folder(pictures("1.png"), "c.jsonl", json.dumps({"file": "1.png", "caption": ["a", "b", "c"]}))
    shown = {
        PictureDataset(source, ImageTransform(8), 1, augment_seed)[epoch, 0].condition["caption"].item()
        for augment_seed in (3,)
        for epoch in range(20)
    }
    assert shown == {encode_caption(text, 1).item() for text in "abc"}
    first = PictureDataset(source, ImageTransform(8), 1)
    assert {first[epoch, 0].condition["caption"].item() for epoch in range(20)} == {encode_caption("a", 1).item()}


def test_captions_of_a_cache_come_back() -> None:
    for own in ([("a",), (), ("é, b",)], [("a", "b"), (), ("é",)]):
        assert read_texts(encode_texts(own)) == own
    assert "caption_count" not in encode_texts([("a",), ()])  # as ever, where none has several
