"""Every family of first stages by the command line: trained, resumed, reconstructed, measured, and stood upon."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from ldm_lightning.artifact import read_artifact
from ldm_lightning.experiment.load import load_first_stage, load_latent_diffusion
from ldm_lightning.latent.bottleneck import VectorQuantizer
from ldm_lightning.loggers.csv_log import read_metrics
from ldm_lightning.nn import ConvEncoder
from ldm_lightning.rng import Streams
from tests.conftest import TINY_BITS, TINY_FIRST_STAGE, TINY_LATENT_DIFFUSION, Result, refused

pytestmark = pytest.mark.slow
Ldm = Callable[..., Result]

# Codes at a place and their number, and bits of a latent position; None where that depends on the weights.
FAMILIES = {
    "vq_f4_tiny": ("first_stage.autoencoder.bottleneck.codes=32", 32, 5),
    "gumbel_f4_tiny": ("first_stage.autoencoder.bottleneck.codes=32", 32, None),
    "fsq_f4_tiny": ("first_stage.autoencoder.bottleneck.levels=[8,4]", 32, 5),
    "bsq_f4_tiny": ("first_stage.autoencoder.bottleneck.latent_channels=6", 64, 6),
    "bernoulli_f4_tiny": ("first_stage.autoencoder.bottleneck.latent_channels=6", 64, None),
    "dc_f32_tiny": ("first_stage.autoencoder.encoder.channels=[8,8,16]", 0, None),
    "kl_f8_tiny": ("first_stage.autoencoder.encoder.channels=[8,8,8,8]", 0, None),
}


@pytest.fixture(scope="session")
def trained(pictures: Path, tmp_path_factory: pytest.TempPathFactory, ldm: Ldm) -> Callable[[str], Path]:
    """The run of a family, trained when it is first asked for."""
    runs = tmp_path_factory.mktemp("families")

    def run(name: str) -> Path:
        if not (runs / name).exists():
            tiny = [text for text in TINY_FIRST_STAGE if not text.startswith("first_stage")]
            own = [f"first_stage={name}", FAMILIES[name][0]]
            if name.startswith("dc"):
                own += [
                    "first_stage.autoencoder.encoder.blocks=[1,1,1]",
                    "first_stage.autoencoder.bottleneck.latent_channels=4",
                ]
            data = ["data=image_folder", f"data.root={pictures}"]
            done = ldm("train", *data, *tiny, *own, f"runs={runs}", f"name={name}")
            assert done.code == 0, done.err
            assert "multiply-adds" in done.out + done.err + (runs / name / "log.txt").read_text()
        return runs / name

    return run


@pytest.mark.parametrize("name", FAMILIES)
def test_a_family_is_trained_reconstructed_and_measured(name: str, trained: Callable[[str], Path], ldm: Ldm) -> None:
    run, (_, codes, bits) = trained(name), FAMILIES[name]
    for verb in (["reconstruct", "n=4"], ["evaluate", "n=10"]):
        done = ldm(*verb, f"run={run}")
        assert done.code == 0, done.err
    logged = read_metrics(run / "metrics.csv")
    figures = json.loads((run / "evaluation" / "metrics.json").read_text())["figures"]
    rate = figures["latent_bits_per_pixel@10"]["value"]
    assert rate > 0
    if bits is not None:
        assert rate == pytest.approx(bits / 16)  # one code for 4x4 pixels
    assert (
        ("code_usage@10" in figures)
        == (any(name.startswith("val/code_perplexity@") for name in logged))
        == ("train/batch_code_usage" in logged)
    )
    if codes:
        assert 0 < figures["code_usage@10"]["value"] <= 1
        assert 1 <= figures["code_perplexity@10"]["value"] <= codes
    module = load_first_stage(run).module
    assert module.autoencoder.bottleneck.codes == codes


def test_the_book_is_part_of_the_artifact(trained: Callable[[str], Path]) -> None:
    run = trained("vq_f4_tiny")
    bottleneck = load_first_stage(run).module.autoencoder.bottleneck
    assert isinstance(bottleneck, VectorQuantizer)
    assert torch.equal(bottleneck.book, read_artifact(run).weights["bottleneck.book"])
    assert bottleneck.counts.sum() > 0
    assert {"train/commitment", "val/commitment"} <= set(read_metrics(run / "metrics.csv"))


@pytest.mark.parametrize(
    ("name", "more"), [("vq_f4_tiny", []), ("fsq_f4_tiny", []), ("bsq_f4_tiny", []), ("bsq_f4_tiny", TINY_BITS)]
)
def test_a_second_stage_stands_on_codes(
    name: str, more: list[str], trained: Callable[[str], Path], pictures: Path, tmp_path: Path, ldm: Ldm
) -> None:
    data = ["data=image_folder", f"data.root={pictures}", f"first_stage.run={trained(name)}"]
    done = ldm("train", *data, *TINY_LATENT_DIFFUSION, *more, f"runs={tmp_path}", "name=second")
    assert done.code == 0, done.err
    done = ldm("sample", f"run={tmp_path}/second", "n=2", "steps=2")
    assert done.code == 0, done.err
    first_stage = load_latent_diffusion(tmp_path / "second").module.first_stage
    x = torch.rand(8, 3, 16, 16) * 2 - 1
    raw = first_stage.autoencoder.encode(x).mode()
    torch.testing.assert_close(first_stage.scale.unstandardize(first_stage.encode(x)), raw)
    # Points of a lattice have a probability, those of a book neither that nor a density, bits on their own path both.
    likely = ["evaluate", f"run={tmp_path}/second", "n=4", "judge=false", "likelihood=bound", "likelihood.steps=3"]
    if name == "vq_f4_tiny":
        refused(ldm(*likely), "codes from a book")
        return
    assert figure_names(ldm(*likely), tmp_path / "second") == {f"nll_bound{'' if more else '_discrete'}_per_dim@4"}


def figure_names(done: Result, run: Path) -> set[str]:
    """Of the evaluation that has just been made."""
    assert done.code == 0, done.err
    return set(json.loads((run / "evaluation" / "metrics.json").read_text())["figures"])


def test_pixels_are_diffused_without_a_first_stage(pictures: Path, tmp_path: Path, ldm: Ldm) -> None:
    data = ["data=image_folder", f"data.root={pictures}", "first_stage=identity"]
    command = ["train", *data, *TINY_LATENT_DIFFUSION, f"runs={tmp_path}", "name=pixels"]
    assert ldm(*command).code == 0
    assert "finished" in ldm(*command).err + (tmp_path / "pixels" / "log.txt").read_text()  # repeated, it is its own
    done = ldm("sample", f"run={tmp_path}/pixels", "n=2", "steps=2")
    assert done.code == 0, done.err
    likely = ["likelihood=ode", "likelihood.tolerance=0.01"]
    done = ldm("evaluate", f"run={tmp_path}/pixels", "n=4", "steps=2", "extractor=tiny", "judge=false", *likely)
    assert figure_names(done, tmp_path / "pixels") == {"fd_tiny@4_too_few", "nll_discrete_per_dim@4"}
    module = load_latent_diffusion(tmp_path / "pixels").module
    x = torch.rand(2, 3, 16, 16) * 2 - 1
    assert module.latent_shape == (3, 16, 16)
    torch.testing.assert_close(module.first_stage.encode(x, Streams(0, torch.arange(2))), 2 * x)
    torch.testing.assert_close(module.first_stage.decode(2 * x), x)
    assert math.isfinite(read_metrics(tmp_path / "pixels" / "metrics.csv")["val/loss"][-1][1])


def test_large_pictures_are_reconstructed_in_tiles(
    first_stage_run: Path, tmp_path: Path, ldm: Ldm, monkeypatch: pytest.MonkeyPatch
) -> None:
    large = tmp_path / "large"
    large.mkdir()
    for number in range(2):
        pixels = np.random.default_rng(number).integers(0, 255, (12, 12), dtype=np.uint8)
        Image.fromarray(pixels).resize((96, 96), Image.Resampling.BICUBIC).save(large / f"{number}.png")
    sizes, encode = set(), ConvEncoder.forward

    def watched(self: ConvEncoder, x: torch.Tensor) -> torch.Tensor:
        sizes.add(tuple(x.shape))
        return encode(self, x)

    monkeypatch.setattr(ConvEncoder, "forward", watched)
    said = {}
    for name, more in (("whole", []), ("tiles", ["tile=48"])):
        output = tmp_path / name
        done = ldm(
            "reconstruct", f"run={first_stage_run}", f"pictures={large}", "size=96", "n=2", f"output={output}", *more
        )
        assert done.code == 0, done.err
        said[name] = np.asarray(Image.open(output / "sheet.png")).astype(int)
    assert sizes == {(2, 3, 96, 96), (1, 3, 48, 48)}
    assert np.abs(said["whole"] - said["tiles"]).mean() < 3  # grey levels
    done = ldm("reconstruct", f"run={first_stage_run}", f"pictures={large}", "size=96", "n=2", "tile=50")
    assert done.code == 2
    assert "multiples of 4" in done.err
