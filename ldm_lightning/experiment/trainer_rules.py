"""What may be asked of Lightning's Trainer, checked before anything is built and without torch.

Lightning checks much of it late, in the middle of training, some of it never, and says little about what to do. Its
arguments that are not named here, and what depends on the machine, are left to it.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from typing import Any

from omegaconf import DictConfig, ListConfig

from ldm_lightning.errors import UserError, nearest

__all__ = ["check_trainer"]

_Rule = tuple[Callable[[Any], bool], str]


def _whole(least: int, *others: int | None) -> _Rule:
    """A whole number from ``least`` on, or one of ``others``."""
    words = [f"a whole number from {least} on", *("null" if other is None else str(other) for other in others)]
    return (lambda value: value in others or (_is_whole(value) and value >= least)), " or ".join(words)


def _share(least: int) -> _Rule:
    """A whole number from ``least`` on, or a share."""

    def fits(value: Any) -> bool:
        share = isinstance(value, float) and (0 < value <= 1 or value == least)
        return value is None or share or (_is_whole(value) and value >= least)

    return fits, f"a whole number of batches from {least} on, a share above 0 such as 0.5 or 1.0, or null for all"


def _one_of(*choices: Any) -> _Rule:
    def fits(value: Any) -> bool:
        return any(type(value) is type(choice) and value == choice for choice in choices)

    shown = ("null" if choice is None else str(choice).lower() for choice in choices)
    return fits, f"one of {', '.join(shown)}"


def _named(*choices: str | None) -> _Rule:
    """One of ``choices``, or an object of the user's own, given by its ``_target_``."""
    fits, words = _one_of(*choices)
    return (lambda value: isinstance(value, DictConfig) or fits(value)), words


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_duration(value: Any) -> bool:
    if isinstance(value, Mapping):
        units = {"weeks", "days", "hours", "minutes", "seconds"}
        return set(value) <= units and all(isinstance(number, int | float) for number in value.values())
    return value is None or re.fullmatch(r"\d+:\d\d:\d\d:\d\d", str(value)) is not None


def _are_devices(value: Any) -> bool:
    if isinstance(value, ListConfig):
        return len(value) > 0 and all(_is_whole(number) and number >= 0 for number in value) and _distinct(value)
    if isinstance(value, str):
        return value == "auto" or (re.fullmatch(r"\d+(,\d+)*,?", value) is not None and _distinct(value.split(",")))
    return _is_whole(value) and (value == -1 or value >= 1)


def _distinct(items: Any) -> bool:
    return len(set(items)) == len(items)


def _is_bound(value: Any) -> bool:
    return value is None or (isinstance(value, int | float) and math.isfinite(value) and value >= 0)


_PRECISIONS = ("auto", "32-true", "bf16-mixed", "16-mixed")
_RULES: dict[str, _Rule] = {
    "max_steps": _whole(1, -1),
    "max_epochs": _whole(1, -1, None),
    "min_steps": _whole(0, None),
    "min_epochs": _whole(0, None),
    "max_time": (_is_duration, "days:hours:minutes:seconds, such as 00:12:00:00, or null"),
    "val_check_interval": _whole(1),
    "check_val_every_n_epoch": _whole(1, None),
    "limit_train_batches": _share(1),
    "limit_val_batches": _share(0),
    "log_every_n_steps": _whole(1),
    "num_sanity_val_steps": _whole(0, -1),
    "num_nodes": _whole(1),
    "devices": (_are_devices, "auto, a number of devices, -1 for all, or a list of different ones such as [0,2]"),
    "accelerator": _one_of("auto", "cpu", "cuda", "gpu"),
    "strategy": _named("auto", "ddp", "ddp_find_unused_parameters_true", "ddp_find_unused_parameters_false"),
    "precision": (lambda value: str(value) in (*_PRECISIONS, "32", "16", "bf16"), f"one of {', '.join(_PRECISIONS)}"),
    "accumulate_grad_batches": _whole(1),
    "gradient_clip_val": (_is_bound, "a number from 0 on, 0 or null for no clipping"),
    "gradient_clip_algorithm": _one_of("norm", "value", None),
    "deterministic": _one_of(True, False, "warn", None),
    "benchmark": _one_of(True, False, None),
    "detect_anomaly": _one_of(True, False),
    "sync_batchnorm": _one_of(True, False),
    "inference_mode": _one_of(True, False),
    "profiler": _named("simple", "advanced", "pytorch", None),
}
# What is decided elsewhere or cannot be, by the values that say no more than what holds anyway.
_ELSEWHERE: dict[str, tuple[tuple[Any, ...], str]] = {
    "barebones": ((False,), "it trains without checkpoints and logs; leave it out"),
    "callbacks": ((None,), "callbacks are added as +callbacks.NAME={_target_: ...}"),
    "default_root_dir": ((None,), "the run's folder is set by runs= and name="),
    "enable_checkpointing": (
        (True, None),
        "checkpoints are always written, as often as callbacks.checkpoints.every_n_steps says",
    ),
    "fast_dev_run": ((False, 0), "it keeps nothing; add debug=fast for a short run"),
    "limit_predict_batches": ((None,), "training predicts nothing; leave it out"),
    "limit_test_batches": ((None,), "training tests nothing, which ldm evaluate does"),
    "logger": ((None,), "loggers are chosen by logger=wandb or logger=tensorboard"),
    "model_registry": ((None,), "the model is kept in the run's folder; leave it out"),
    "overfit_batches": ((0,), "every epoch has another order of the data; train on a folder of few pictures instead"),
    "plugins": ((None,), "checkpoints are written by a plugin that cannot be replaced; leave it out"),
    "reload_dataloaders_every_n_epochs": ((0,), "every epoch has another order of the data anyway; leave it out"),
    "use_distributed_sampler": ((False,), "the data are shared out by their numbers; leave it out"),
}


def check_trainer(trainer: DictConfig) -> None:
    """Check the configuration of the Trainer.

    Raises:
        UserError: the first setting that cannot be, or that is decided elsewhere.
    """
    for key, value in ((str(key), value) for key, value in trainer.items()):
        name = f"trainer.{key}"
        shown = "null" if value is None else value
        if key in _ELSEWHERE and value not in _ELSEWHERE[key][0]:
            raise UserError(f"{name}={shown} cannot be set here: {_ELSEWHERE[key][1]}")
        fits, wanted = _RULES.get(key, (None, ""))
        if fits is not None and not fits(value):
            near = nearest(value, wanted.removeprefix("one of ").split(", ")) if isinstance(value, str) else ""
            raise UserError(f"{name}={shown} must be {wanted}{near}")
    accumulated, interval = trainer.get("accumulate_grad_batches", 1), trainer.get("val_check_interval", 1)
    if trainer.get("check_val_every_n_epoch") is None and interval % accumulated:
        raise UserError(
            f"trainer.val_check_interval={interval} counts batches and must be a multiple of "
            f"trainer.accumulate_grad_batches={accumulated}"
        )
