"""Emoji from a package as npm unpacks it: a small one made here, and the real one where it can be had."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest

from ldm_lightning.data.datamodule import DataModule
from ldm_lightning.data.emoji import Emoji
from ldm_lightning.data.picture import ImageTransform
from ldm_lightning.errors import UserError


def prepared(root: Path | str, **options) -> Emoji:
    source = Emoji(str(root), **options)
    source.prepare(64)
    return source


@pytest.fixture
def own(emoji_package, tmp_path) -> Path:
    """A copy to break."""
    return Path(shutil.copytree(emoji_package, tmp_path / "package"))


def test_captions_classes_and_white_ground(emoji_package):
    source = prepared(emoji_package)
    captions = [source.captions(i)[0] for i in range(len(source))]
    assert len(captions) == 60 == len(set(captions))
    assert {"sign 1", "sign 1, light skin tone", "sign 1, dark and medium-light skin tone"} <= set(captions)
    assert source.class_names == ("People & Body", "Symbols")
    for i, caption in enumerate(captions):
        number = int(caption.split(",")[0].removeprefix("sign "))
        assert source.class_names[source.label(i)] == ("Symbols", "People & Body")[number % 2]
    picture = source.picture(captions.index("sign 0"))
    assert (picture.mode, picture.size) == ("RGB", (64, 64))
    assert np.asarray(picture).mean() > 170  # noise at half its opacity on white


def test_all_tones_of_an_emoji_are_on_one_side_of_every_split(emoji_package):
    source = prepared(emoji_package)
    parted = False
    for tenths in range(1, 10):
        data = DataModule(source, ImageTransform(64), validation=tenths / 10)
        sides: dict[str, set[str]] = {}
        for split in ("train", "validation"):
            for i in data._splits[split] if data.sizes[split] else ():
                sides.setdefault(source.captions(int(i))[0].split(",")[0], set()).add(split)
        assert all(len(side) == 1 for side in sides.values())
        # By their own content, tones would have been parted.
        by_content = DataModule(Apart(source), ImageTransform(64), validation=tenths / 10)
        by_content.setup()
        names = [
            {source.captions(int(i))[0].split(",")[0] for i in by_content._splits[split]}
            for split in ("train", "validation")
        ]
        parted |= bool(names[0] & names[1])
    assert parted


class Apart:
    """The same pictures, each for itself."""

    def __init__(self, source: Emoji) -> None:
        self.source = source

    def __getattr__(self, name: str):
        return getattr(self.source, name)

    def __len__(self) -> int:
        return len(self.source)

    def split_key(self, i: int) -> bytes:
        return self.source.content_hash(i)


def test_equal_pictures_are_on_one_side_too(own):
    folder = own / "img" / "maker" / "64"
    shutil.copy(folder / "1.png", folder / "3.png")
    source = prepared(own)
    keys = {source.captions(i)[0]: source.split_key(i) for i in range(len(source))}
    assert keys["sign 1"] == keys["sign 3"] == keys["sign 1, light skin tone"] != keys["sign 5"]
    assert len(set(keys.values())) == 39


def test_pictures_that_the_table_leaves_out_are_left_out(own):
    rows = json.loads((own / "emoji.json").read_text())
    (own / "emoji.json").write_text(json.dumps(rows[:7]))
    source = prepared(own)
    assert {source.captions(i)[0].split(",")[0] for i in range(len(source))} == {
        f"sign {number}" for number in range(7)
    }
    assert len(source) == 7 + 2 * 2


def test_one_of_several_vendors(own):
    shutil.copytree(own / "img" / "maker", own / "img" / "other")
    assert prepared(own, vendor="other").name == "emoji of other"
    with pytest.raises(UserError, match="null is none of maker, other"):
        prepared(own)
    with pytest.raises(UserError, match=r"makr is none of maker, other.*did you mean 'maker'"):
        prepared(own, vendor="makr")


@pytest.mark.parametrize(
    ("breakage", "message"),
    [
        (lambda root: (root / "emoji.json").unlink(), r"holds no emoji\.json.*npm pack"),
        (lambda root: (root / "emoji.json").write_text("[{"), r"emoji\.json is damaged.*npm pack"),
        (lambda root: (root / "emoji.json").write_text("[3]"), r"emoji\.json is damaged.*npm pack"),
        (lambda root: (root / "emoji.json").write_text('[{"name": "A"}]'), r"emoji\.json is damaged.*category"),
        (lambda root: shutil.rmtree(root / "img"), r"img/VENDOR/64.*npm pack"),
        (shutil.rmtree, r"is no folder.*npm pack"),
    ],
)
def test_a_broken_package_is_refused_with_the_mend(own, breakage, message):
    breakage(own)
    with pytest.raises(UserError, match=message) as error:
        prepared(own)
    assert "\n" not in str(error.value)


def test_the_published_package():
    root = os.environ.get("EMOJI_DATASOURCE")
    if not root:
        pytest.skip("EMOJI_DATASOURCE names no unpacked emoji-datasource-google")
    source = prepared(root)
    assert len(source) > 3700
    assert len(source.class_names) == 10
    captions = {source.captions(i)[0] for i in range(len(source))}
    assert {"face with tears of joy", "handshake, light and dark skin tone"} <= captions
    data = DataModule(source, ImageTransform(64), validation=0.2)
    assert 0.14 < data.sizes["validation"] / len(source) < 0.26  # families are large, so shares scatter
