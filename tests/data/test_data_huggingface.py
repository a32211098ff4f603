from __future__ import annotations

import io

import numpy as np
import pytest

from ldm_lightning.data import scan
from ldm_lightning.data.huggingface import HuggingFace
from ldm_lightning.errors import UserError

datasets = pytest.importorskip("datasets", reason="the extra 'data' is not installed")


@pytest.fixture(autouse=True)
def offline(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_OFFLINE", True)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "hf")


@pytest.fixture
def table(tmp_path, noise):
    """Write a folder with one parquet file of pictures and further columns."""

    def write(sizes, features: dict | None = None, bad=(), **columns) -> str:
        contents = []
        for seed, size in enumerate(sizes):
            file = io.BytesIO()
            noise(seed, (size, size)).save(file, "PNG")
            contents.append({"bytes": b"damaged" if seed in bad else file.getvalue(), "path": None})
        kinds = {name: datasets.Value("string" if isinstance(v[0], str) else "int64") for name, v in columns.items()}
        kinds |= {"image": datasets.Image()} | (features or {})
        folder = tmp_path / "table"
        folder.mkdir()
        data = datasets.Dataset.from_dict({"image": contents, **columns}, features=datasets.Features(kinds))
        data.to_parquet(str(folder / "train.parquet"))
        return str(folder)

    return write


def test_local_parquet(table, noise):
    names = datasets.ClassLabel(names=["cat", "dog", "owl"])
    path = table([12] * 4, {"label": names}, label=[1, 0, 1, 1], text=["a", "", "ç", "d"])
    source = HuggingFace(path, caption_column="text")
    source.prepare(12)
    assert len(source) == 4
    assert np.array_equal(source.picture(2), noise(2, (12, 12)))
    assert source.class_names == ("cat", "dog", "owl")  # all declared, though no owl is there
    assert [source.label(i) for i in range(4)] == [1, 0, 1, 1]
    assert [source.captions(i) for i in range(4)] == [("a",), (), ("ç",), ("d",)]
    assert len({source.content_hash(i) for i in range(4)}) == 4


@pytest.mark.parametrize(
    ("labels", "names", "expected"),
    [([7, 3, 7], ("3", "7"), [1, 0, 1]), (["b", "a", "b"], ("a", "b"), [1, 0, 1])],
)
def test_labels_without_declared_names(table, labels, names, expected):
    source = HuggingFace(table([8] * 3, label=labels))
    source.prepare()
    assert source.class_names == names
    assert [source.label(i) for i in range(3)] == expected
    assert source.captions(0) == ()


def test_unlabelled(table):
    source = HuggingFace(table([8] * 2), label_column=None)
    source.prepare()
    assert (source.class_names, source.label(0), source.has_captions) == ((), None, False)


def test_bad_and_small_pictures_are_left_out(table):
    path = table([8, 8, 6, 8], bad=[1], label=[0, 1, 2, 3])
    source = HuggingFace(path, max_bad_fraction=0.5)
    with pytest.warns(UserWarning, match=r"row [12] \(") as caught:
        source.prepare(8)
    assert len([w for w in caught if "left out" in str(w.message)]) == 2
    assert [source.label(i) for i in range(len(source))] == [0, 1]  # rows 0 and 3, renumbered without gaps
    assert source.class_names == ("0", "3")


def test_second_start_reads_nothing(table, monkeypatch):
    path = table([8] * 3, label=[0, 1, 2])
    HuggingFace(path).prepare()
    monkeypatch.setattr(scan, "open_picture", lambda content: pytest.fail("a known picture was read again"))
    HuggingFace(path).prepare()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"image_column": "img"}, r"image_column=img is no column .*image, .*did you mean 'image'"),
        ({"label_column": "lable"}, "did you mean 'label'"),
        ({"caption_column": "caption"}, "caption_column=caption is no column"),
        ({"image_column": "label"}, "holds no pictures"),
        ({"split": "nope"}, r"could not be loaded .*data\.source\.path, subset and split"),
    ],
)
def test_wrong_columns(table, options, message):
    with pytest.raises(UserError, match=message) as caught:
        HuggingFace(table([8] * 2, label=[0, 1]), **options).prepare()
    assert "\n" not in str(caught.value)


def test_unlabelled_split(table):
    path = table([8] * 2, {"label": datasets.ClassLabel(names=["a", "b"])}, label=[0, -1])
    with pytest.raises(UserError, match=r"no class in row 1 but -1.*label_column=null"):
        HuggingFace(path).prepare()


def test_missing_folder(tmp_path):
    with pytest.raises(UserError, match="could not be loaded"):
        HuggingFace(str(tmp_path / "nowhere")).prepare()


@pytest.mark.parametrize("split", ["train", "validation"])
def test_one_parquet_file(table, split):
    source = HuggingFace(table([8] * 3, label=[0, 1, 2]) + "/train.parquet", split=split)
    source.prepare()
    assert len(source) == 3


def test_an_unreadable_picture_is_named(table):
    path = table([8] * 3, label=[0, 1, 2], bad=[1]) + "/train.parquet"
    with pytest.raises(UserError, match=r"train\.parquet: 1 of 3 .*row 1 \(not a picture that Pillow knows\)"):
        HuggingFace(path, max_bad_fraction=0).prepare()
