"""Every yaml composes, fits the signatures it names, and can be built; every experiment trains."""

from __future__ import annotations

import importlib.util
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import hydra
import pytest
import torch
import yaml
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf, open_dict

from ldm_lightning.cli import VERBS
from ldm_lightning.errors import UserError
from ldm_lightning.experiment.build import DATA_SHORTCUTS
from ldm_lightning.experiment.compose import conf_dir
from ldm_lightning.experiment.schema import check
from ldm_lightning.experiment.trust import vetted
from ldm_lightning.nn.count import parameters
from tests.conftest import Result

CONF = conf_dir()
GROUPS = sorted(path.name for path in CONF.iterdir() if path.is_dir())
OPTIONS = [(path.parent.name, path.stem) for path in sorted(CONF.glob("*/*.yaml"))]
DERIVED = {"channels": 1, "height": 32, "width": 32, "num_classes": 10, "class_names": [], "latent_channels": 4}
FREE = {
    "data.root": "/nowhere",
    "data.source.path": "/nowhere",
    "first_stage.run": "/nowhere",
    "guidance.run": "/nowhere",
    "data.source.pictures": {"_target_": "ldm_lightning.data.digits.Mnist5k"},
    "data.transform": {"_target_": "ldm_lightning.data.picture.ImageTransform", "size": 32},
    "data.validation": 0.1,
    "data.test": 0.3,
    "data.caption_length": 64,
}


def compose(verb: str, *overrides: str) -> DictConfig:
    try:
        with hydra.initialize_config_dir(str(CONF), version_base="1.3"):
            config = hydra.compose(verb, list(overrides), return_hydra_config=True)
            HydraConfig.instance().set_config(config)
            with open_dict(config):
                del config["hydra"]
                config.derived = DERIVED
                for key, value in FREE.items():
                    group, _, name = key.rpartition(".")
                    parent = OmegaConf.select(config, group)
                    if parent is not None and OmegaConf.is_missing(parent, name):
                        OmegaConf.update(config, key, value)
            return config
    finally:
        GlobalHydra.instance().clear()


def verb_and_overrides(group: str, option: str) -> tuple[str, list[str]]:
    """A command line that uses the option."""
    if group in ("extractor", "likelihood", "perceptual"):
        return "evaluate", [f"{group}={option}"]
    if group in ("experiment", "debug", "sweep", "stage", "data", "trainer", "logger", "optim", "learning_rate"):
        return "train", [f"{group}={option}"]
    if group == "adversary":
        return "train", ["stage=first_stage", f"+adversary@first_stage.adversary={option}"]
    if group in ("first_stage", "loss", "regularizer") or (group == "callbacks" and option.startswith("first_stage")):
        return "train", ["stage=first_stage", f"{group}={option}"]
    return "train", ["stage=latent_diffusion", f"{group}={option}"]


@pytest.mark.parametrize(("group", "option"), OPTIONS)
def test_every_option_composes_and_fits_its_signatures(group: str, option: str) -> None:
    verb, overrides = verb_and_overrides(group, option)
    config = compose(verb, *overrides)
    check(config, beside=[f"data.{key}" for key in DATA_SHORTCUTS])
    plain = OmegaConf.to_container(config, resolve=True, throw_on_missing=verb == "train")  # no interpolation dangles
    if verb == "train":
        vetted(plain, Path("config.yaml"))  # what a run records can be read again


def buildable(config: DictConfig) -> dict[str, Any]:
    """Nodes that name a callable, by their key, the shortcuts of the data node left out."""
    plain = OmegaConf.to_container(config, resolve=True)
    assert isinstance(plain, dict)
    plain["data"] = {k: v for k, v in plain.get("data", {}).items() if k not in DATA_SHORTCUTS}

    def walk(key: str, node: Any) -> Iterator[tuple[str, dict[str, Any]]]:
        if isinstance(node, dict) and "_target_" in node:
            yield key, node
        elif isinstance(node, dict):
            for name, below in node.items():
                yield from walk(f"{key}.{name}" if key else name, below)

    return dict(walk("", plain))


@pytest.mark.parametrize(("group", "option"), OPTIONS)
def test_every_option_is_built(group: str, option: str, tmp_path: Path) -> None:
    verb, overrides = verb_and_overrides(group, option)
    config = compose(verb, *overrides, *([f"runs={tmp_path}", "trainer.devices=1"] if verb == "train" else []))
    for name, node in buildable(config).items():
        perceptual = node.get("perceptual") or node
        if node["_target_"].endswith("InceptionExtractor") or perceptual["_target_"].endswith(".Lpips"):
            with pytest.raises(Exception, match="fid"):
                instantiate(node)
            continue
        if node["_target_"].endswith("autoguidance"):
            with pytest.raises(Exception, match="/nowhere does not exist"):
                instantiate(node)
            continue
        if name == "trainer":
            node |= {"precision": "32-true", "accelerator": "cpu", "logger": False}
        with torch.device("meta" if name == "first_stage.autoencoder" else "cpu"):  # large ones without their weights
            assert instantiate(node) is not None


FIRST_STAGES = {option for group, option in OPTIONS if group == "first_stage"} - {"identity", "trained"}
SIZES = ("_tiny", "", "_large")


@pytest.mark.parametrize(
    "family", sorted({option.removesuffix("_tiny").removesuffix("_large") for option in FIRST_STAGES})
)
def test_every_first_stage_comes_in_three_sizes(family: str) -> None:
    assert {f"{family}{size}" for size in SIZES} <= FIRST_STAGES
    with torch.device("meta"):
        made = [instantiate(compose("train", f"first_stage={family}{size}").first_stage.autoencoder) for size in SIZES]
    counts = [parameters(autoencoder) for autoencoder in made]
    assert counts[0] < 1e6 < counts[1] < counts[2], counts  # the first for a processor
    assert len({autoencoder.encoder.factor for autoencoder in made}) == 1


@pytest.mark.parametrize("part", ["grid", "scale"])
def test_parts_of_a_sampler_compose_with_it(part: str) -> None:
    for option in sorted(path.stem for path in (CONF / "sampler" / part).glob("*.yaml")):
        config = compose("train", "stage=latent_diffusion", "sampler=edm", f"+sampler/{part}={option}")
        check(config.sampler)
        assert callable(getattr(instantiate(config.sampler), part))


@pytest.mark.parametrize("part", ["importance", "term"])
@pytest.mark.parametrize("objective", ["flow", "ddpm", "edm"])
def test_parts_of_an_objective_compose_with_it(part: str, objective: str) -> None:
    options = sorted(path.stem for path in (CONF / "objective" / part).glob("*.yaml"))
    for chosen in [*options, f"[{','.join(options)}]"]:
        config = compose("train", "stage=latent_diffusion", f"objective={objective}", f"+objective/{part}={chosen}")
        check(config.objective)
        made = instantiate(config.objective, _convert_="all")
        assert made.importance is not None if part == "importance" else callable(next(iter(made.terms.values())))


@pytest.mark.parametrize("option", sorted(path.stem for path in (CONF / "loss" / "distance").glob("*.yaml")))
def test_distances_compose_with_every_loss(option: str) -> None:
    for loss in ("l1_kl", "perceptual_gan"):
        config = compose("train", f"loss={loss}", f"loss/distance={option}")
        check(config.first_stage)
        distance = instantiate(config.first_stage.loss.distance)
        assert distance(torch.ones(2), torch.zeros(2)) == pytest.approx({"huber": 0.095}.get(option, 1.0))


def test_losses_and_regularizers_are_deltas() -> None:
    config = compose(
        "train",
        "first_stage=kl_f8",
        "loss=perceptual_gan",
        "loss/distance=l2",
        "regularizer=[equivariance,alignment]",
        "first_stage.loss.kl_weight=1e-6",
    )
    node = config.first_stage
    assert node.loss.distance._target_ == "torch.nn.MSELoss"
    assert (node.loss.kl_weight, len(node.autoencoder.encoder.channels)) == (1e-6, 4)
    assert set(node.regularizers) == {"equivariance", "alignment"}
    assert "adversary" in node
    assert "adversary" not in compose("train").first_stage
    published = compose("train", "regularizer=va_vae").first_stage.regularizers
    assert set(published) == {"alignment"}
    assert published.alignment.projected
    assert published.alignment.weight == node.regularizers.alignment.weight
    assert published.alignment.balance.delta == 1e-4


def test_every_yaml_says_what_it_is() -> None:
    """Each yaml says in its first comment what it is and where it comes from."""
    for path in CONF.rglob("*.yaml"):
        lines = [line for line in path.read_text().splitlines() if not line.startswith("# @package ")]
        assert lines[0].startswith("# "), path


EXPERIMENTS = [option for group, option in OPTIONS if group == "experiment"]
SMALL = [
    "debug=fast",
    "data.batch_size=8",
    "trainer.accelerator=cpu",
    "trainer.devices=1",
    "trainer.enable_progress_bar=false",
]


def first_stage_of(experiment: str) -> str:
    data = next(name for name in ("fashion_mnist", "emoji", "mnist5k") if experiment.startswith(name))
    return f"{data}_bernoulli_first_stage" if "bernoulli" in experiment else f"{data}_first_stage"


@pytest.mark.slow
@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_every_experiment_trains(
    experiment: str, ldm: Callable[..., Result], tmp_path_factory: pytest.TempPathFactory, emoji_package: Path
) -> None:
    if experiment == "fashion_mnist_first_stage_gan" and importlib.util.find_spec("stlpips_pytorch") is None:
        pytest.skip("needs the extra offline")
    if "fashion" in experiment and not Path("/usr/share/datasets/fashion-mnist").is_dir():
        pytest.skip("needs the Debian package dataset-fashion-mnist")
    data = [f"data.root={emoji_package}"] if "emoji" in experiment else []
    runs = tmp_path_factory.getbasetemp() / "experiments"
    first = runs / (experiment if "first_stage" in experiment else first_stage_of(experiment))
    if not first.exists():
        done = ldm(
            "train",
            f"experiment={first.name}",
            *SMALL,
            *data,
            f"runs={runs}",
            f"name={first.name}",
            "statistics_pictures=64",
        )
        assert done.code == 0, done.err
    if experiment != first.name:
        done = ldm(
            "train",
            f"experiment={experiment}",
            *SMALL,
            *data,
            "sampler.steps=2",
            f"runs={runs}",
            f"name={experiment}",
            f"first_stage.run={first}",
        )
        assert done.code == 0, done.err
        shutil.rmtree(runs / experiment)


@pytest.mark.parametrize("verb", VERBS)
def test_help_fits_a_screen(verb: str, ldm: Callable[..., Result]) -> None:
    result = ldm(verb, "--help")
    assert result.code == 0
    lines = result.out.rstrip().splitlines()
    assert sum(-(-max(len(line), 1) // 140) for line in lines) <= 45  # rows of a terminal, which wraps long lists
    assert lines[0].startswith(f"ldm {verb}: ")
    if verb != "train":
        keys = yaml.safe_load((CONF / f"{verb}.yaml").read_text()).keys() - {"defaults", "derived", "hydra"}
        assert keys <= set(re.findall(r"^  (\w+)=\S+ +\S", result.out, re.MULTILINE))  # each with its meaning


def test_help_names_the_groups(ldm: Callable[..., Result]) -> None:
    text = ldm("train", "--help").out
    for group in set(GROUPS):
        assert re.search(rf"^\s*{group}: ", text, re.MULTILINE)


def test_help_names_every_option_once(ldm: Callable[..., Result], tmp_path: Path) -> None:
    """Sizes folded into one entry; those of the user's folder as well."""
    (tmp_path / "denoiser").mkdir()
    for option in ("mine", "mine_large", "lone_tiny", "unet_large", "unet_huge"):
        (tmp_path / "denoiser" / f"{option}.yaml").touch()
    text = ldm("train", "--help", "--config-dir", str(tmp_path)).out
    listed = dict(re.findall(r"^([\w/]+): (.+)$", text, re.MULTILINE))
    assert listed["denoiser"] == "dit[_tiny], lone_tiny, mine[_large], unet[_tiny|_large], unet_huge"
    assert not any(group.startswith("hydra") for group in listed)
    for group in sorted({str(path.parent.relative_to(CONF)) for path in CONF.glob("*/**/*.yaml")} - {"denoiser"}):
        unfolded = [
            name + size
            for name, sizes in re.findall(r"(\w+)(?:\[(\S+)\])?", listed[group])
            for size in ("", *filter(None, sizes.split("|")))
        ]
        assert sorted(unfolded) == sorted(path.stem for path in (CONF / group).glob("*.yaml"))


def test_no_yaml_is_a_dead_key() -> None:
    """Top-level keys of the verbs' own yaml files are read by the verbs."""
    package = conf_dir().parent / "ldm_lightning"
    files = (path for room in ("cli", "experiment") for path in (package / room).glob("*.py"))
    source = "\n".join(path.read_text() for path in files)
    for verb in VERBS:
        for key in yaml.safe_load((CONF / f"{verb}.yaml").read_text()):
            if key not in ("defaults", "hydra", "runs"):
                assert re.search(rf"config\.{key}\b", source), f"{verb}.yaml: {key}"


def test_signatures_are_checked() -> None:
    node = OmegaConf.create({"a": {"_target_": "ldm_lightning.nn.dit.DiT", "in_channels": 4, "widht": 8}})
    with pytest.raises(UserError, match=r"'a\.widht'.*did you mean 'width'"):
        check(node)
    with pytest.raises(UserError, match=r"a\.depth=2\.5 is not of type int"):
        check(OmegaConf.create({"a": {"_target_": "ldm_lightning.nn.dit.DiT", "in_channels": 4, "depth": 2.5}}))
    check(OmegaConf.create({"a": {"_target_": "ldm_lightning.nn.dit.DiT", "in_channels": 4, "mlp_ratio": 4}}))
