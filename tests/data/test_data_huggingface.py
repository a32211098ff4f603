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


def test_rows_without_a_class_are_left_out(table):
    path = table([8] * 3, {"label": datasets.ClassLabel(names=["a", "b"])}, label=[0, -1, 1])
    source = HuggingFace(path)
    with pytest.warns(UserWarning, match=r"1 of 3 pictures have no class in label: row 1 \(-1\); they are left out"):
        source.prepare()
    assert (source.class_names, [source.label(i) for i in range(len(source))]) == (("a", "b"), [0, 1])
    with pytest.raises(UserError, match=r"1 of 3 .*label_column=null"):
        HuggingFace(path, max_bad_fraction=0).prepare()


def test_an_unlabelled_split(table):
    path = table([8] * 2, {"label": datasets.ClassLabel(names=["a", "b"])}, label=[-1, -1])
    with pytest.raises(UserError, match=r"2 of 2 pictures have no class.*row 0 \(-1\).*label_column=null"):
        HuggingFace(path, max_bad_fraction=1).prepare()


def test_classes_are_whole_numbers(table, noise):
    double = {"label": datasets.Value("float64")}
    path = table([8] * 4, double, label=[10.0, None, 9.0, 10.0], text=["a", "b", "c", "d"])
    source = HuggingFace(path, caption_column="text")
    with pytest.warns(UserWarning, match=r"1 of 4 pictures have no class"):
        source.prepare()
    assert (source.class_names, [source.label(i) for i in range(3)]) == (("9", "10"), [1, 0, 1])
    assert [source.captions(i) for i in range(3)] == [("a",), ("c",), ("d",)]
    assert np.array_equal(source.picture(1), noise(2, (8, 8)))


def test_a_class_is_no_fraction(table):
    path = table([8] * 2, {"label": datasets.Value("float64")}, label=[1.0, 1.5])
    with pytest.raises(UserError, match=r"row 1, holds no class but 1\.5.*label_column=null"):
        HuggingFace(path).prepare()


@pytest.mark.parametrize("of_splits", [False, True])
def test_what_save_to_disk_leaves(table, tmp_path, of_splits):
    labels, texts = [3, 1, 3], ["a", "b", "c"]
    data = datasets.Dataset.from_parquet(table([8] * 3, label=labels, text=texts) + "/train.parquet")
    data = data.with_format("torch")  # which is saved along
    (datasets.DatasetDict(train=data, test=data.select([2, 1])) if of_splits else data).save_to_disk(tmp_path / "saved")
    source = HuggingFace(str(tmp_path / "saved"), split="test" if of_splits else "train", caption_column="text")
    source.prepare()
    rows = [2, 1] if of_splits else [0, 1, 2]
    assert [source.captions(i) for i in range(len(source))] == [(texts[row],) for row in rows]
    assert [source.class_names[source.label(i)] for i in range(len(source))] == [str(labels[row]) for row in rows]
    if of_splits:
        with pytest.raises(UserError, match=r"split=tset is none of train, test .*did you mean 'test'"):
            HuggingFace(str(tmp_path / "saved"), split="tset").prepare()


def test_one_arrow_file(table, tmp_path):
    data = datasets.Dataset.from_parquet(table([8] * 3, label=[0, 1, 2]) + "/train.parquet")
    data.save_to_disk(tmp_path / "saved")
    (file,) = (tmp_path / "saved").glob("*.arrow")
    source = HuggingFace(str(file))
    source.prepare()
    assert [source.label(i) for i in range(3)] == [0, 1, 2]


def test_an_archive_is_read_elsewhere(tmp_path):
    (tmp_path / "x.tar").touch()
    with pytest.raises(UserError, match=r"is an archive: use data=image_folder data\.root=.*x\.tar"):
        HuggingFace(str(tmp_path / "x.tar")).prepare()


def test_no_script_of_a_data_set_is_run(tmp_path):
    (tmp_path / "set").mkdir()
    mark = tmp_path / "ran"
    (tmp_path / "set" / "set.py").write_text(f"open({str(mark)!r}, 'w')")
    with pytest.raises(UserError, match="could not be loaded"):
        HuggingFace(str(tmp_path / "set")).prepare()
    assert not mark.exists()


def test_missing_folder(tmp_path):
    with pytest.raises(UserError, match=r"data\.source\.path=.*nowhere does not exist"):
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
