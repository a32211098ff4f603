"""A latent cache is the pictures' equal: same samples, splits, order, mirroring; and any damage to it is noticed."""

from __future__ import annotations

import json
import pickle
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from ldm_lightning.artifact import replace_file
from ldm_lightning.data.datamodule import DataModule
from ldm_lightning.data.dataset import PictureDataset
from ldm_lightning.data.latent_files import Manifest, Shards, Writer, read_manifest, verify
from ldm_lightning.data.latents import LatentCache, LatentDataset
from ldm_lightning.data.philox import first_uniforms, first_words, generator
from ldm_lightning.data.picture import ImageTransform
from ldm_lightning.data.source import Source
from ldm_lightning.errors import UserError
from tests.conftest import killed_at

FLIPPED = ImageTransform(size=8, flip=True)


def begin(root: Path, source: Source, **changes: object) -> Writer:
    """A cache of ``source`` whose "latent" of a sample is (index, view): one channel each."""
    source.prepare()
    manifest = Manifest(
        first_stage="weights",
        transform=repr(FLIPPED),
        data="fingerprint",
        dtype="float32",
        shape=(2, 2, 1, 1),
        count=len(source),
        shard_size=7,
        class_names=source.class_names,
        config={},
    )
    root.mkdir(exist_ok=True)
    return Writer(root, replace(manifest, **changes))


def write(writer: Writer, number: int) -> None:
    index = np.array(writer.samples(number), dtype=np.float32)
    views = [np.stack([index, np.full_like(index, view)], axis=1) for view in (0, 1)]
    writer.write(number, np.stack(views, axis=1)[..., None, None])


def finish(writer: Writer, source: Source) -> None:
    every = range(len(source))
    samples = {"hash": np.stack([np.frombuffer(source.content_hash(i), np.uint8) for i in every])}
    if source.class_names:
        samples["label"] = np.array([source.label(i) for i in every])
    if source.has_captions:
        texts = ["".join(source.captions(i)).encode() for i in every]
        samples["caption"] = np.frombuffer(b"".join(texts), np.uint8)
        samples["caption_end"] = np.cumsum([len(text) for text in texts])
    (writer.root / "first_stage").mkdir(exist_ok=True)
    (writer.root / "first_stage" / "weights-1.safetensors").write_bytes(b"weights")
    writer.finish(samples, "first_stage")


def make(root: Path, source: Source, **changes: object) -> Path:
    writer = begin(root, source, **changes)
    for number in writer.missing:
        write(writer, number)
    finish(writer, source)
    return root


@pytest.fixture
def source(array) -> Source:
    return array(40)


@pytest.fixture
def latents(tmp_path: Path, source: Source) -> Path:
    return make(tmp_path / "latents", source)


def cached(root: Path, source: Source | None = None, **options) -> DataModule:
    options = {"batch_size": 8, "validation": 0.2, **options}
    return DataModule(LatentCache(str(root), source), FLIPPED, dataset=LatentDataset, **options)


def live(source: Source, **options) -> DataModule:
    return DataModule(source, FLIPPED, **{"batch_size": 8, "validation": 0.2, **options})


def test_words_and_numbers_are_those_of_the_generators():
    index = np.array([0, 1, 5, 2**33, 10**6])
    for seed in (0, 3, 2**70 + 5, -1):
        for epoch in (0, 7):
            words = first_words(seed, "some", epoch, index)
            uniforms = first_uniforms(seed, "some", epoch, index)
            for row, numbers, i in zip(words, uniforms, index, strict=True):
                assert (generator(seed, "some", epoch, int(i)).bit_generator.random_raw(4) == row).all()
                assert (generator(seed, "some", epoch, int(i)).random(4) == numbers).all()
    assert first_words(0, "some", 0, index[:0]).shape == (0, 4)


def test_samples_are_those_of_the_pictures(latents: Path, source: Source):
    ours, theirs = cached(latents), live(source)
    assert (ours.sizes, ours.class_names, ours.num_classes) == (theirs.sizes, theirs.class_names, 3)
    assert (ours.fingerprint, ours.contents, ours.shape) == (theirs.fingerprint, theirs.contents, theirs.shape)
    assert torch.equal(ours.conditions(5)["class"], theirs.conditions(5)["class"])


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize("seed", [0, 4])
def test_order_conditions_and_mirroring_are_those_of_live_training(latents, source, seed, workers):
    pairs = zip(
        cached(latents, seed=seed, num_workers=workers).train_dataloader(),
        live(source, seed=seed).train_dataloader(),
        strict=True,
    )
    mirrored = []
    for ours, theirs in pairs:
        assert torch.equal(ours.index, theirs.index)
        assert ours.epoch == theirs.epoch
        assert torch.equal(ours.condition["class"], theirs.condition["class"])
        assert ours.x[:, 0, 0, 0].tolist() == ours.index.tolist()
        for view, x, index in zip(ours.x[:, 1, 0, 0].tolist(), theirs.x, theirs.index.tolist(), strict=True):
            upright = FLIPPED(source.picture(index))
            assert torch.equal(x, upright.flip(-1) if view else upright)
            mirrored.append(view)
    assert 0 < np.mean(mirrored) < 1


def test_mirroring_changes_with_the_epoch(latents, source):
    source.prepare()
    prepared = LatentCache(str(latents))
    prepared.prepare()
    ours, theirs = LatentDataset(prepared, FLIPPED, 8, 3), PictureDataset(source, FLIPPED, 8, 3)
    upright = [FLIPPED(source.picture(i)) for i in range(40)]
    views = []
    for epoch in (0, 1, 1000):
        batch = ours.__getitems__([(epoch, i) for i in range(40)])
        views.append(batch.x[:, 1, 0, 0].bool().tolist())
        assert views[-1] == [not torch.equal(theirs[epoch, i].x, upright[i]) for i in range(40)]
    assert views[0] != views[1] != views[2]


def test_evaluation_sees_every_sample_upright(latents, source):
    batches = list(cached(latents).val_dataloader())
    assert [batch.index.tolist() for batch in batches] == [b.index.tolist() for b in live(source).val_dataloader()]
    assert all((batch.x[:, 1] == 0).all() for batch in batches)


def test_another_transform_is_refused(tmp_path, latents, source):
    plain = ImageTransform(8)
    with pytest.raises(UserError, match=r"flip=True.*not with .*flip=False"):
        DataModule(LatentCache(str(latents)), plain, 8, validation=0, dataset=LatentDataset).train_dataloader()
    root = make(tmp_path / "one", source, transform=repr(plain))
    data = DataModule(LatentCache(str(root)), plain, 8, validation=0, dataset=LatentDataset)
    assert all((batch.x[:, 1] == 0).all() for batch in data.train_dataloader())  # it mirrors nothing


def test_captions_come_from_the_cache(pictures, tmp_path):
    from ldm_lightning.data.folder import ImageFolder

    root = pictures("1.png", "2.png", "3.png")
    (root / "c.csv").write_text("file,caption\n1.png,aé\n3.png,a longer text\n", encoding="utf-8")
    source = ImageFolder(str(root), "c.csv")
    ours, theirs = (
        cached(make(tmp_path / "latents", source), validation=0, caption_length=5),
        live(source, validation=0),
    )
    theirs.caption_length = 5
    ours.setup()
    assert ours.has_captions
    assert ours.fingerprint == theirs.fingerprint
    assert [ours.source.captions(i) for i in range(3)] == [("aé",), (), ("a longer text",)]
    (batch,), (expected,) = ours._evaluation(LatentDataset, np.arange(3)), theirs.loader("train")
    assert batch.condition.keys() == {"caption"}
    assert batch.condition["caption"].dtype == torch.int64
    assert torch.equal(batch.condition["caption"], expected.condition["caption"])


def test_ranks_share_a_global_batch(latents):
    from types import SimpleNamespace

    whole = next(iter(cached(latents).train_dataloader()))
    for rank in (0, 1):
        data = cached(latents)
        data.trainer = SimpleNamespace(global_rank=rank, world_size=2, current_epoch=0)
        part = next(iter(data.train_dataloader()))
        assert torch.equal(part.index, whole.index[rank::2])
        assert torch.equal(part.x, whole.x[rank::2])


def test_rows_are_gathered_across_shards_in_the_order_asked_for(latents):
    shards = Shards(latents, read_manifest(latents))
    assert len(shards.rows) == 6
    index, view = np.array([39, 0, 6, 7, 39, 20, 1]), np.array([1, 0, 1, 0, 0, 1, 1])
    for each in (shards, pickle.loads(pickle.dumps(shards))):
        found = each.take(index, view)[:, :, 0, 0]
        assert found[:, 0].tolist() == index.tolist()
        assert found[:, 1].tolist() == view.tolist()
    assert len(pickle.dumps(shards)) < 10_000  # a worker maps the files again


def test_pictures_are_had_from_where_the_cache_was_made_of(latents, source, array):
    data = cached(latents, source)
    assert torch.equal(data.pictures("validation").x, live(source).pictures("validation").x)
    assert next(iter(data.loader("validation"))).x.shape[1:] == (3, 8, 8)
    with pytest.raises(UserError, match=r"real pictures are needed here.*data\.pictures=FOLDER"):
        cached(latents).pictures("validation")
    with pytest.raises(UserError, match="no longer holds what it was made of"):
        cached(latents, array(40, size=(9, 9))).pictures("validation")


# --- damage ----------------------------------------------------------------------------------------------------------


def one(root: Path, pattern: str, number: int = 0) -> Path:
    return sorted(root.glob(pattern))[number]


def flip(path: Path, place: float, bit: int = 0) -> None:
    content = bytearray(path.read_bytes())
    content[min(int(place * len(content)), len(content) - 1)] ^= 1 << bit
    path.write_bytes(content)


def truncate(path: Path, count: int) -> None:
    path.write_bytes(path.read_bytes()[:-count])


def swap(root: Path) -> None:
    first, second = one(root, "latents-*", 0), one(root, "latents-*", 1)
    content = first.read_bytes()
    first.write_bytes(second.read_bytes())
    second.write_bytes(content)


def edit(root: Path, **changes: object) -> None:
    path = root / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


DAMAGE: dict[str, tuple[Callable[[Path], object], str]] = {
    "bit of a shard's header": (lambda r: flip(one(r, "latents-*"), 0.1), "latents-00000-.* is damaged"),
    "first bit of the last shard": (lambda r: flip(one(r, "latents-*", -1), 0.0), "latents-00005-.* is damaged"),
    "last bit of a shard": (lambda r: flip(one(r, "latents-*", 2), 1.0, 7), "latents-00002-.* is damaged"),
    "byte cut off": (lambda r: truncate(one(r, "latents-*", 1), 1), "latents-00001-.* is damaged"),
    "shard emptied": (lambda r: one(r, "latents-*").write_bytes(b""), "latents-00000-.* is damaged"),
    "shard appended to": (lambda r: one(r, "latents-*").open("ab").write(b"\0"), "latents-00000-.* is damaged"),
    "shard missing": (lambda r: one(r, "latents-*", 3).unlink(), "latents-00003-.* is missing"),
    "two shards exchanged": (swap, "latents-0000[01]-.* is damaged"),
    "labels": (lambda r: flip(one(r, "samples-*"), 0.9), "samples-.* is damaged"),
    "no labels": (lambda r: one(r, "samples-*").unlink(), "samples-.* is missing"),
    "first stage": (lambda r: flip(one(r, "first_stage/weights-*"), 0.5), "weights-1.* is damaged"),
    "no first stage": (lambda r: shutil.rmtree(r / "first_stage"), "weights-1.* is missing"),
    "no manifest": (lambda r: (r / "manifest.json").unlink(), "holds no latents"),
    "half a manifest": (lambda r: truncate(r / "manifest.json", 100), "damaged"),
    "no longer JSON": (lambda r: (r / "manifest.json").write_bytes(b"\xff"), "damaged"),
    "other weights": (lambda r: edit(r, first_stage="others"), "damaged or edited"),
    "other transform": (lambda r: edit(r, transform="other"), "damaged or edited"),
    "other data": (lambda r: edit(r, data="others"), "damaged or edited"),
    "other key": (lambda r: edit(r, key="another"), "damaged or edited"),
    "unknown field": (lambda r: edit(r, more=1), "damaged, or of another version"),
    "another kind": (lambda r: edit(r, kind="first_stage"), "but a first_stage model"),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_damage_is_refused_in_one_line(latents, damage):
    do, message = DAMAGE[damage]
    do(latents)
    with pytest.raises(UserError, match=message) as caught:
        cached(latents).setup()
    assert "\n" not in str(caught.value)
    assert any(mend in str(caught.value) for mend in ("ldm encode", "encode again"))


def test_no_bit_of_the_manifest_can_flip_unnoticed(latents, tmp_path):
    path = latents / "manifest.json"
    content = path.read_bytes()
    rng = np.random.default_rng(0)
    for place, bit in zip(rng.integers(0, len(content), 400), rng.integers(0, 8, 400), strict=True):
        damaged = bytearray(content)
        damaged[place] ^= 1 << bit
        path.write_bytes(damaged)
        with pytest.raises(UserError):
            verify(latents, read_manifest(latents))


# --- writing ---------------------------------------------------------------------------------------------------------


def contents(root: Path) -> dict[str, bytes]:
    return {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file()}


def test_an_incomplete_cache_is_refused_and_only_the_rest_is_made(tmp_path, source, latents):
    root = tmp_path / "other"
    writer = begin(root, source)
    assert writer.missing == [0, 1, 2, 3, 4, 5]
    for number in (0, 2):
        write(writer, number)
    assert killed_at(0, lambda: replace_file(root / f"latents-00003-{'a' * 16}.npy", b"half"))
    assert any(root.glob(".latents-00003-*/*"))
    with pytest.raises(UserError, match=r"incomplete \(2 of 6 shards\): repeat the ldm encode"):
        cached(root).setup()
    stamps = {path: path.stat().st_mtime_ns for path in root.glob("latents-*")}
    writer = begin(root, source)
    assert writer.missing == [1, 3, 4, 5]
    for number in writer.missing:
        write(writer, number)
    finish(writer, source)
    assert {path: path.stat().st_mtime_ns for path in stamps} == stamps
    assert contents(root) == contents(latents)
    assert begin(root, source).missing == []
    assert contents(root) == contents(latents)  # nothing to do, nothing touched


def test_damaged_shards_are_made_again(latents, source):
    """The damaged one is kept aside: what is not what we wrote is not ours to delete."""
    before = contents(latents)
    damaged = one(latents, "latents-*", 1)
    flip(damaged, 0.5)
    aside = {f"{damaged.stem}-1.npy": damaged.read_bytes()}
    one(latents, "latents-*", 4).unlink()
    writer = begin(latents, source)
    assert writer.missing == [1, 4]
    for number in writer.missing:
        write(writer, number)
    finish(writer, source)
    assert contents(latents) == before | aside


def test_a_cache_whose_only_shard_is_damaged_can_be_gone_on_with(tmp_path, source):
    root = tmp_path / "other"
    write(begin(root, source), 0)
    flip(one(root, "latents-*"), 0.5)
    for _ in range(2):  # the second time as if killed before it had made one
        assert begin(root, source).missing == [0, 1, 2, 3, 4, 5]


@pytest.mark.parametrize(
    "changes", [{"first_stage": "x"}, {"data": "x"}, {"transform": "x"}, {"dtype": "float16"}, {"shard_size": 8}]
)
def test_latents_of_another_origin_are_left_alone(latents, source, changes):
    before = contents(latents)
    (name,) = changes
    with pytest.raises(UserError, match=f"another origin .*{name}: .* -> .*choose another output="):
        begin(latents, source, **changes)
    assert contents(latents) == before


def test_a_beginning_without_a_shard_binds_nobody(tmp_path, source):
    root = tmp_path / "new"
    begin(root, source)
    assert begin(root, source, transform="other").missing


@pytest.mark.parametrize("name", ["chapter.tex", "latents-of-mine.npy", "manifest.json"])
def test_a_folder_of_something_else_is_left_alone(tmp_path, source, name):
    root = tmp_path / "thesis"
    root.mkdir()
    (root / name).write_text("{}")
    with pytest.raises(UserError, match="holds something else"):
        begin(root, source)
    assert contents(root) == {name: b"{}"}


def test_what_lies_beside_a_cache_stays(latents, source):
    own = ["latents-mine.npy", "latents-00001-mine.npy", ".latents-notes", ".samples-x", ".manifest.json.old", "a/b"]
    own += [".first_stage.old/weights", f".latents-00000-{'a' * 16}.npy.{'0' * 32}/b"]
    for name in own:
        (latents / name).parent.mkdir(exist_ok=True)
        (latents / name).write_bytes(b"the user's")
    flip(one(latents, "latents-00002-*"), 0.5)
    with pytest.warns(UserWarning, match="latents-00002-.* is damaged"):
        writer = begin(latents, source)
    assert writer.missing == [2]
    write(writer, 2)
    finish(writer, source)
    assert [(latents / name).read_bytes() for name in own] == [b"the user's"] * len(own)
    verify(latents, read_manifest(latents))
