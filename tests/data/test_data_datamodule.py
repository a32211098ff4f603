from __future__ import annotations

import contextlib
import multiprocessing
import re
import signal
import subprocess
import sys
import warnings
from itertools import islice, pairwise
from pathlib import Path
from types import SimpleNamespace

import pytest
import pytorch_lightning as pl
import torch
from torch.utils.data import DataLoader

from ldm_lightning.data.batch import Batch
from ldm_lightning.data.datamodule import DataModule
from ldm_lightning.data.dataset import PictureDataset, collate, encode_caption
from ldm_lightning.data.folder import ImageFolder
from ldm_lightning.data.picture import ImageTransform
from ldm_lightning.errors import UserError

AUGMENTED = ImageTransform(size=8, crop="random", flip=True)


def as_rank(data: DataModule, rank: int, world: int) -> DataModule:
    """Attach the little of a trainer that tells the ranks apart."""
    data.trainer = SimpleNamespace(global_rank=rank, world_size=world, current_epoch=0)
    return data


def same(first: Batch, second: Batch) -> bool:
    return (
        torch.equal(first.x, second.x)
        and torch.equal(first.index, second.index)
        and first.epoch == second.epoch
        and first.condition.keys() == second.condition.keys()
        and all(torch.equal(first.condition[name], second.condition[name]) for name in first.condition)
    )


def test_batches_carry_samples_by_global_index(array):
    data = DataModule(array(40), ImageTransform(size=8), batch_size=8, validation=0.2)
    batch = next(iter(data.train_dataloader()))
    assert (batch.x.shape, batch.x.dtype, batch.epoch) == ((8, 3, 8, 8), torch.float32, 0)
    assert batch.index.dtype == batch.condition["class"].dtype == torch.int64
    assert set(batch.condition) == {"class"}
    for x, index, label in zip(batch.x, batch.index.tolist(), batch.condition["class"].tolist(), strict=True):
        assert torch.equal(x, ImageTransform(size=8)(data.source.picture(index)))
        assert label == index % 3


def test_captions_are_bytes(pictures):
    root = pictures("1.png", "2.png")
    (root / "c.csv").write_text("file,caption\n1.png,aé\n", encoding="utf-8")
    data = DataModule(ImageFolder(str(root), "c.csv"), ImageTransform(8), batch_size=2, validation=0, caption_length=5)
    (batch,) = data.loader("train")
    assert data.has_captions
    assert data.class_names == ()
    assert batch.condition.keys() == {"caption"}
    assert batch.condition["caption"].tolist() == [[ord("a") + 1, 0xC3 + 1, 0xA9 + 1, 0, 0], [0] * 5]


def test_long_captions_are_cut_between_letters():
    assert encode_caption("aé", 2).tolist() == [ord("a") + 1, 0]
    assert encode_caption("abc", 2).tolist() == [ord("a") + 1, ord("b") + 1]


def test_augmentation_is_a_function_of_seed_epoch_and_index(array):
    source = array(4, size=(8, 16))
    source.prepare()
    dataset = PictureDataset(source, AUGMENTED, augment_seed=0)
    assert torch.equal(dataset[0, 1].x, dataset[0, 1].x)
    assert any(not torch.equal(dataset[0, 1].x, dataset[epoch, 1].x) for epoch in range(1, 5))
    other = PictureDataset(source, AUGMENTED, augment_seed=1)
    assert any(not torch.equal(dataset[epoch, 1].x, other[epoch, 1].x) for epoch in range(5))


def test_evaluation_is_not_augmented(array):
    data = DataModule(array(40, size=(8, 16)), AUGMENTED, batch_size=8, validation=0.3)
    for batch in data.val_dataloader():
        for x, index in zip(batch.x, batch.index.tolist(), strict=True):
            assert torch.equal(x, AUGMENTED(data.source.picture(index)))
        assert batch.epoch == 0


@pytest.mark.parametrize("split", ["train", "validation"])
def test_workers_change_nothing(array, split):
    def batches(workers: int) -> list[Batch]:
        data = DataModule(array(60, (8, 16)), AUGMENTED, batch_size=8, num_workers=workers, validation=0.3)
        loader = data.train_dataloader() if split == "train" else data.val_dataloader()
        return [batch for _ in range(2) for batch in loader]

    alone, helped = batches(0), batches(2)
    assert len(alone) == len(helped) >= 2
    assert all(same(first, second) for first, second in zip(alone, helped, strict=True))


def test_ranks_and_batch_split_change_nothing(array):
    def samples(batch_size: int, world: int) -> dict[tuple[int, int], torch.Tensor]:
        found = {}
        for rank in range(world):
            data = as_rank(DataModule(array(48, (8, 16)), AUGMENTED, batch_size, validation=0), rank, world)
            loader = data.train_dataloader()
            for batch in (batch for _ in range(2) for batch in loader):
                found |= {(batch.epoch, i): x for i, x in zip(batch.index.tolist(), batch.x, strict=True)}
        return found

    reference = samples(8, 1)
    assert len(reference) == 96
    for batch_size, world in ((8, 2), (16, 4), (24, 1)):
        found = samples(batch_size, world)
        assert found.keys() == reference.keys()
        assert all(torch.equal(found[key], reference[key]) for key in reference)


def test_ranks_evaluate_every_sample_once(array):
    whole = DataModule(array(60), ImageTransform(8), batch_size=6, validation=0.3)
    shares = [
        [
            batch.index.tolist()
            for batch in as_rank(DataModule(array(60), ImageTransform(8), 6), rank, 3).loader("train", limit=20)
        ]
        for rank in range(3)
    ]
    assert len({len(share) for share in shares}) == 1
    seen = sorted(i for share in shares for batch in share for i in batch)
    assert len(seen) == len(set(seen)) == 20
    assert sum(len(batch) for batch in whole.val_dataloader()) == whole.sizes["validation"]


def indices(loader) -> list[int]:
    return [i for batch in loader for i in batch.index.tolist()]


def test_loader_limits(array):
    data = DataModule(array(100), ImageTransform(8), batch_size=16, validation=0)
    assert indices(data.loader("train")) == list(range(100))
    assert indices(data.loader("train", limit=4)) == [0, 25, 50, 75]
    assert indices(data.loader("train", limit=1000)) == list(range(100))
    drawn = indices(data.loader("train", limit=30, shuffle_seed=1))
    assert drawn == indices(data.loader("train", limit=30, shuffle_seed=1))
    assert len(set(drawn)) == 30
    assert drawn != sorted(drawn)
    assert drawn != indices(data.loader("train", limit=30, shuffle_seed=2))


def test_properties(array):
    data = DataModule(array(50), ImageTransform(size=8, channels=1), validation=0.2, test=0.2)
    assert data.shape == (1, 8, 8)
    assert (data.class_names, data.num_classes, data.has_captions) == (("a", "b", "c"), 3, False)
    assert sum(data.sizes.values()) == 50
    assert min(data.sizes.values()) > 0


def test_fingerprint(array, pictures, tmp_path):
    def fingerprint(count=10, size=8, validation=0.1, **options):
        return DataModule(array(count), ImageTransform(size), validation=validation, **options).fingerprint

    prints = [fingerprint(), fingerprint(count=11), fingerprint(size=4), fingerprint(validation=0.2)]
    assert len(set(prints)) == 4
    assert fingerprint(batch_size=3, seed=5) == prints[0]  # how data are visited is not what they are

    root = pictures("1.png", "2.png")
    before = DataModule(ImageFolder(str(root)), ImageTransform(8))
    prints = before.fingerprint, before.contents
    (root / "1.png").rename(root / "3.png")
    after = DataModule(ImageFolder(str(root)), ImageTransform(8))
    assert after.fingerprint != prints[0]  # the order, hence each picture's noise, is another
    assert after.contents == prints[1]


def test_fingerprint_knows_the_labels(pictures):
    root = pictures("a/1.png", "a/2.png", "b/3.png", "b/4.png")
    before = DataModule(ImageFolder(str(root)), ImageTransform(8)).fingerprint
    (root / "a" / "2.png").rename(root / "b" / "2.png")
    assert DataModule(ImageFolder(str(root)), ImageTransform(8)).fingerprint != before


def test_small_pictures_reach_the_source(pictures):
    root = pictures("1.png")  # 12 x 12
    with pytest.raises(UserError, match="smaller than 16 pixels"):
        DataModule(ImageFolder(str(root)), ImageTransform(16)).setup()
    DataModule(ImageFolder(str(root)), ImageTransform(16, upscale=True)).setup()
    DataModule(ImageFolder(str(root)), ImageTransform(16, pad=2)).setup()


@pytest.mark.parametrize(
    ("options", "use", "message"),
    [
        ({}, lambda d: d.train_dataloader(), r"data\.batch_size=64 but only 12 training pictures"),
        ({}, lambda d: d.val_dataloader(), r"validation split of 12 pictures is empty: set a larger data\.validation"),
        ({}, lambda d: d.test_dataloader(), r"test split of 12 pictures is empty: set a larger data\.test"),
        ({}, lambda d: d.loader("validatoin"), "did you mean 'validation'"),
        ({}, lambda d: d.loader("train", limit=0), "limit of 0"),
        ({"batch_size": 5}, lambda d: as_rank(d, 0, 2).train_dataloader(), "multiple of the 2 processes"),
        ({}, lambda d: as_rank(d, 0, 16).loader("train"), "only 12 pictures to evaluate for 16 processes"),
        ({"validation": 0.6, "test": 0.4}, None, "sum to less than 1"),
        ({"num_workers": -1}, None, "num_workers=-1"),
        ({"caption_length": 0}, None, "caption_length=0"),
    ],
)
def test_mistakes(array, options, use, message):
    with pytest.raises(UserError, match=message):
        use(DataModule(array(12), ImageTransform(8), **{"validation": 0.0, **options}))


@pytest.mark.parametrize("workers", [0, 1])
def test_picture_that_breaks_during_training_is_named_in_one_line(pictures, workers):
    root = pictures("1.png", "2.png")
    data = DataModule(ImageFolder(str(root)), ImageTransform(8), 2, workers, validation=0)
    data.setup()
    (root / "2.png").write_bytes(b"gone")
    with pytest.raises(UserError, match=r"2\.png has become unreadable") as caught:
        list(data.loader("train"))
    assert "\n" not in str(caught.value)
    assert str(caught.value).startswith(str(root))


def test_unused_iterators_with_workers_move_nothing(array):
    data = DataModule(array(12), ImageTransform(8), 4, 1, validation=0)
    loader = data.train_dataloader()
    iter(loader)
    iter(loader)
    assert data.state_dict() == {"epoch": 0, "batches": 0}
    assert next(iter(loader)).epoch == 0


def test_plain_dataloader_accepts_the_parts(array):
    data = DataModule(array(12), ImageTransform(8), 4, validation=0)
    data.train_dataloader()
    loader = DataLoader(PictureDataset(data.source, data.transform), batch_sampler=data._order, collate_fn=collate)
    assert [batch.epoch for _ in range(2) for batch in loader] == [0] * 3 + [1] * 3


class Recorder(pl.LightningModule):
    """Trains nothing and remembers what it saw."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.seen: list[tuple[int, list[int], float]] = []

    def training_step(self, batch: Batch, _: int) -> torch.Tensor:
        self.seen.append((batch.epoch, batch.index.tolist(), batch.x.sum().item()))
        return self.weight * batch.x.mean()

    def validation_step(self, batch: Batch, _: int) -> None:
        pass

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


class SaveAt(pl.Callback):
    """Save a checkpoint at one call of one hook, then perhaps stop as if killed."""

    def __init__(self, hook: str, call: int, path, kill: bool = True) -> None:
        self.calls, self.state = 0, None

        def save(trainer, module, *_) -> None:
            if trainer.sanity_checking:
                return
            self.calls += 1
            if self.calls == call:
                trainer.save_checkpoint(path)
                self.done, self.state = len(module.seen), trainer.datamodule.state_dict()
                if kill:
                    raise KeyboardInterrupt

        setattr(self, hook, save)


def train(data: DataModule, epochs: int = 4, callback=None, ckpt_path=None, **options) -> Recorder:
    module = Recorder()
    trainer = pl.Trainer(
        max_epochs=epochs,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[callback] if callback else None,
        **options,
    )
    with contextlib.suppress(KeyboardInterrupt, SystemExit):
        trainer.fit(module, datamodule=data, ckpt_path=ckpt_path, weights_only=True)
    return module


PLACES = [
    ("on_train_batch_end", 1, {}),
    ("on_train_batch_end", 6, {}),  # in the middle of the second epoch
    ("on_train_batch_end", 8, {}),  # after the last batch of the second epoch
    ("on_validation_end", 2, {}),
    ("on_validation_end", 3, {"val_check_interval": 2}),
    ("on_train_epoch_end", 2, {}),
    ("on_train_batch_end", 3, {"limit_train_batches": 2}),
    ("on_train_batch_end", 4, {"limit_train_batches": 2}),
    ("on_train_batch_end", 6, {"reload_dataloaders_every_n_epochs": 1}),
]


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize(("hook", "call", "options"), PLACES)
def test_killed_and_resumed_is_never_killed(array, tmp_path, hook, call, options, workers):
    def data() -> DataModule:
        return DataModule(array(24, (8, 16)), AUGMENTED, 4, workers, validation=0.2)

    whole = train(data(), **options).seen
    path = tmp_path / "some.ckpt"
    callback = SaveAt(hook, call, path)
    first = train(data(), callback=callback, **options).seen
    assert first == whole[: callback.done]
    saved = torch.load(path, weights_only=True)["DataModule"]
    assert saved == callback.state
    with warnings.catch_warnings():
        warnings.simplefilter("error", pl.utilities.warnings.PossibleUserWarning)
        warnings.filterwarnings("ignore", message=".*(many workers|logging interval).*")
        rest = train(data(), ckpt_path=path, **options).seen
    assert first + rest == whole


def test_state_counts_finished_batches_not_prefetched_ones(array, tmp_path):
    data = DataModule(array(24), ImageTransform(8), 4, 2, validation=0.2)
    callback = SaveAt("on_train_batch_end", 2, tmp_path / "some.ckpt")
    train(data, callback=callback)
    assert callback.state == {"epoch": 0, "batches": 2}


def test_workers_end_with_the_training(array, tmp_path):
    before = set(multiprocessing.active_children())
    for callback in (None, SaveAt("on_train_batch_end", 2, tmp_path / "some.ckpt")):
        train(DataModule(array(24), ImageTransform(8), 4, 1, validation=0.2), epochs=1, callback=callback)
        assert set(multiprocessing.active_children()) <= before


def test_state_before_the_first_batch_of_a_resumed_run(array, tmp_path):
    def data() -> DataModule:
        return DataModule(array(24), ImageTransform(8), 4, validation=0.2)

    train(data(), callback=SaveAt("on_validation_end", 2, tmp_path / "a.ckpt"))
    again = SaveAt("on_train_start", 1, tmp_path / "b.ckpt")
    train(data(), callback=again, ckpt_path=tmp_path / "a.ckpt")
    assert again.state == {"epoch": 2, "batches": 0}


def test_a_second_fit_with_a_new_trainer_starts_over(array):
    data = DataModule(array(24), ImageTransform(8), 4, validation=0.2)
    assert train(data, epochs=2).seen == train(data, epochs=2).seen


def test_restored_place_without_a_trainer(array):
    def data() -> DataModule:
        return DataModule(array(24), ImageTransform(8), 4, validation=0)

    resumed = data()
    resumed.load_state_dict({"epoch": 1, "batches": 2})
    assert resumed.state_dict() == {"epoch": 1, "batches": 2}
    loader, whole = data().train_dataloader(), []
    for _ in range(3):
        whole += list(loader)
    rest = resumed.train_dataloader()
    found = list(rest) + list(rest)
    assert all(same(a, b) for a, b in zip(found, whole[6 + 2 :], strict=True))


def test_epochs_differ_in_a_run(array):
    seen = train(DataModule(array(24), ImageTransform(8), 4, validation=0.2), epochs=3).seen
    epochs = [[index for epoch, batch, _ in seen if epoch == e for index in batch] for e in range(3)]
    assert all(first != second for first, second in pairwise(epochs))
    assert [epoch for epoch, _, _ in islice(seen, 0, None, len(seen) // 3)] == [0, 1, 2]


@pytest.mark.slow
def test_python_exits_while_workers_live(pictures):
    """A loader that is still in use at the end, as in a script or after an error, must not keep its process."""
    root = pictures(*(f"{i}.png" for i in range(8)))
    script = f"""
from ldm_lightning.data.datamodule import DataModule
from ldm_lightning.data.folder import ImageFolder
from ldm_lightning.data.picture import ImageTransform
data = DataModule(ImageFolder({str(root)!r}), ImageTransform(8), batch_size=2, num_workers=2)
batches = iter(data.loader("train"))
next(batches)
import sys
sys.kept = batches
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.skipif(not hasattr(signal, "sigwaitinfo"), reason="the system does not tell who sent a signal")
def test_a_stranger_cannot_end_workers(pictures):
    """A scheduler sends SIGTERM to every process; a worker that died of it would take the save along."""
    root = pictures(*(f"{i}.png" for i in range(12)))
    data = DataModule(ImageFolder(str(root)), ImageTransform(8), batch_size=1, num_workers=2, validation=0.0)
    loader = data.loader("train")
    batches = iter(loader)
    for _ in range(2):  # one of either worker, which then has begun
        next(batches)
    workers = loader._iterator._workers
    for worker in workers if Path("/proc").is_dir() else ():
        masks = [status.read_text() for status in Path(f"/proc/{worker.pid}/task").glob("*/status")]
        blocked = [int(re.search(r"SigBlk:\s*(\w+)", mask)[1], 16) >> (signal.SIGTERM - 1) & 1 for mask in masks]
        assert blocked.count(0) == 1  # the one that waits for it; any other would die of it, now and then
    for number in (signal.SIGTERM, signal.SIGUSR1):
        subprocess.run(["kill", f"-{int(number)}", *(str(worker.pid) for worker in workers)], check=True)
    assert len(list(batches)) == 10
    assert all(worker.is_alive() for worker in workers)
    workers[0].terminate()
    workers[0].join(20)
    assert not workers[0].is_alive()
