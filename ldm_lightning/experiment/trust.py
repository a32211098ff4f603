"""What a saved configuration may name: the whitelist through which everything from a run folder passes.

A run folder, an artifact or a latent cache may come from somebody else, and whatever its configuration names as
``_target_`` is called when the model is built. So before anything is built, every node of it, however deeply nested,
must name one of these:

- a public class or function of the rooms ``nn``, ``latent`` and ``diffusion``, which compute and do nothing else;
- a module ``torch.nn.NAME`` or an optimizer ``torch.optim.NAME``;
- one of the few others that a model and its data are made of (:data:`_PARTS`);
- what only training builds (:data:`_TRAINING`), below those keys alone that no reader builds (:data:`_UNBUILT`);
- what a package defines that the command line trusts: ``trust=my_package``.

A name is compared as it is written before any module is imported for it. Then what it leads to is asked where it was
defined: ``ldm_lightning.nn.count.torch.save`` begins well and is ``torch.save``. Interpolations (``${oc.env:HOME}``)
are refused as well: what we save is resolved.

What is left to whoever wrote a run is to choose among these parts and their arguments: which folder of pictures is
read (``data.root``), which public data set is fetched into the caches of this user, how much memory is used. Files are
written where the command says, and by what stands here.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from importlib import import_module
from pathlib import Path
from types import FunctionType
from typing import Any, TypeVar

from ldm_lightning.errors import UserError
from ldm_lightning.experiment.locate import locate, where

__all__ = ["is_trusted", "trusting", "vetted"]

Saved = TypeVar("Saved")

_MATHEMATICS = ("ldm_lightning.nn", "ldm_lightning.latent", "ldm_lightning.diffusion")
_TORCH = {"torch.nn": "Module", "torch.optim": "Optimizer"}  # what is below is of this class
_PARTS = {
    "ldm_lightning.experiment.guidance.autoguidance",
    "ldm_lightning.data.datamodule.DataModule",
    "ldm_lightning.data.digits.Mnist5k",
    "ldm_lightning.data.emoji.Emoji",
    "ldm_lightning.data.fashion.FashionMnist",
    "ldm_lightning.data.folder.ImageFolder",
    "ldm_lightning.data.huggingface.HuggingFace",
    "ldm_lightning.data.latents.LatentCache",
    "ldm_lightning.data.latents.LatentDataset",
    "ldm_lightning.data.picture.ImageTransform",
    "ldm_lightning.training.optim.Constant",
    "ldm_lightning.training.optim.Cosine",
}
_TRAINING = {  # they write where their arguments say, or read weights by other libraries
    "ldm_lightning.callbacks.checkpoints.Checkpoints",
    "ldm_lightning.callbacks.ema.Ema",
    "ldm_lightning.callbacks.finite.SkipNonFinite",
    "ldm_lightning.callbacks.frechet.FrechetDuringTraining",
    "ldm_lightning.callbacks.gallery.ReconstructionGallery",
    "ldm_lightning.callbacks.gallery.SampleGallery",
    "ldm_lightning.loggers.tensorboard_log.tensorboard_run",
    "ldm_lightning.loggers.wandb_log.WandbRun",
    "ldm_lightning.metrics.extractor.EfficientNetLite0",
    "ldm_lightning.metrics.extractor.InceptionExtractor",
    "ldm_lightning.metrics.extractor.TinyExtractor",
    "ldm_lightning.metrics.perceptual.Lpips",
    "ldm_lightning.metrics.perceptual.ShiftTolerantLpips",
    "ldm_lightning.training.adversary.Adversary",
    "pytorch_lightning.Trainer",
}
_UNBUILT = re.compile(
    r"(config\.)?(callbacks|logger|trainer|first_stage\.(adversary|regularizers|loss\.perceptual))(\.|$)"
)
# Hydra's own ways to name a class or function without calling it: what counts is what they look up.
_LOOKUPS = {f"hydra.utils.{name}" for name in ("get_class", "get_method", "get_static_method", "get_object")}

_trusted: ContextVar[tuple[str, ...]] = ContextVar("_trusted", default=())


@contextmanager
def trusting(packages: str | Sequence[str] | None) -> Iterator[None]:
    """Let what is read inside the ``with`` block name parts of these packages, or modules, as well.

    Raises:
        UserError: there can be no package of such a name.
    """
    several = isinstance(packages, Sequence) and not isinstance(packages, str)
    names: list[Any] = [] if packages is None else list(packages) if several else [packages]
    for name in names:
        if not _is_dotted(name):
            raise UserError(f"trust={name} names no package: write trust=my_package, or trust=[one,other]")
    token = _trusted.set(tuple(names))
    try:
        yield
    finally:
        _trusted.reset(token)


def vetted(saved: Saved, file: Path) -> Saved:
    """Plain values (any nesting of dicts and lists) as they were read from ``file``, once all of them are looked at.

    Raises:
        UserError: the first node that names anything but the parts above, or that is an interpolation.
    """
    _check(saved, file, "")
    return saved


def is_trusted(name: str) -> bool:
    """Whether what has this dotted name is of a package that the command line trusts."""
    return _is_dotted(name) and any(_within(name, package) for package in _trusted.get())


def _check(node: Any, file: Path, key: str) -> None:
    if isinstance(node, dict):
        if "_target_" in node:
            _check_target(node, file, key)
        below = [(str(name), value) for name, value in node.items()]
    elif isinstance(node, list | tuple):
        below = [(str(number), value) for number, value in enumerate(node)]
    else:
        if isinstance(node, str) and "${" in node:
            raise UserError(
                f"{file}: {_shown(key)} is {_shown(node)}, to be filled in when it is read: put the value itself there"
            )
        below = []
    for name, value in below:
        _check(value, file, f"{key}.{name}" if key else name)


def _check_target(node: dict[Any, Any], file: Path, key: str) -> None:
    target = node["_target_"]
    if isinstance(target, str) and target in _LOOKUPS and "_args_" not in node:
        target = node.get("path")
    place = f"{file}: {_shown(key)} names {_shown(str(target))}"
    if not isinstance(target, str) or not _is_dotted(target):
        raise UserError(f"{place}, which is no class or function: take the run from somebody you trust")
    if target in _PARTS or (target in _TRAINING and _UNBUILT.match(key)):
        return
    if _is_mathematics(target) or _is_torch(target):
        return
    if any(_within(target, name) for name in _trusted.get()):
        _check_trusted(target, place)
    else:
        raise UserError(f"{place}, which is not known here and could do anything: {_mend(target)}")


def _shown(text: str) -> str:
    """``text`` on one line, whatever is in it."""
    return text if text.isprintable() else repr(text)


def _is_dotted(name: Any) -> bool:
    return isinstance(name, str) and all(part.isidentifier() for part in name.split("."))


def _within(name: str, place: str) -> bool:
    return name == place or name.startswith(f"{place}.")


def _is_mathematics(target: str) -> bool:
    """Whether ``target`` is a public class or function of these rooms, by whichever of their modules it is reached."""
    if not any(_within(target, room) for room in _MATHEMATICS):
        return False
    try:
        import_module(target.rpartition(".")[0])  # a module of ours, not one of others that ours have imported
        made = locate(target)
    except (ImportError, UserError):
        return False
    if not isinstance(made, type | FunctionType) or not any(_within(made.__module__, room) for room in _MATHEMATICS):
        return False
    home = sys.modules[made.__module__]
    return made.__qualname__ in home.__all__ and getattr(home, made.__qualname__) is made


def _is_torch(target: str) -> bool:
    """Whether ``target`` is a module of ``torch.nn`` or an optimizer of ``torch.optim``, by its short name."""
    place, _, name = target.rpartition(".")
    if place not in _TORCH:
        return False
    names = vars(import_module(place))
    made = names.get(name)
    return isinstance(made, type) and issubclass(made, names[_TORCH[place]])


def _check_trusted(target: str, place: str) -> None:
    """Check that what a trusted package holds under this name is its own: it may have imported anything."""
    made = locate(target)
    home, name = getattr(made, "__module__", None), getattr(made, "__qualname__", "")
    own, trusted = f"{home}.{name}", _trusted.get()
    if target in trusted or any(_within(str(home), package) for package in trusted):
        return
    if own not in _PARTS and not _is_mathematics(own):
        raise UserError(f"{place}, which is {own} and not of a package that trust= names: leave it, or name that too")


def _mend(target: str) -> str:
    package = target.partition(".")[0]
    if package in sys.stdlib_module_names or package in ("ldm_lightning", "torch", "pytorch_lightning", "hydra"):
        package = target  # no more than this of what can do anything
    return f"add trust={package} if you trust whoever wrote it{where(target)}"
