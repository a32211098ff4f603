"""The places that a command names, looked at before torch is imported: what is misspelt is refused at once.

Whether something is there is all that is asked, in the words of those who read it later. Nothing is read or made.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from ldm_lightning.artifact import check_finished
from ldm_lightning.cli.sweep import is_sweep
from ldm_lightning.errors import no_such_place
from ldm_lightning.experiment.run_folder import check_begun, check_place, first_stage_of
from ldm_lightning.interop.hub import check_source, looks_local

__all__ = ["check_places"]

_OF_BEGUN_RUNS = ("doctor", "finish")  # verbs that take also a run without a model


def check_places(verb: str, config: DictConfig) -> None:
    """Check that what the configuration of a verb needs is given and there.

    Raises:
        UserError: the first place that is not there.
        MissingMandatoryValue: the first that is not given.
    """
    if verb == "train":
        check_place(config)
    if (run := _needed(config, "run")) is not None:
        (check_begun if verb in _OF_BEGUN_RUNS else check_finished)(Path(run))
    if (source := _needed(config, "source")) is not None:
        check_source(str(source))
    for key in ("root", "pictures"):
        _check_exists(key, config.get(key))
    _check_data(config)
    _check_trained(config)


def _check_exists(key: str, place: Any) -> None:
    if isinstance(place, str) and place and not Path(place).expanduser().exists():
        raise no_such_place(key, place)


def _check_data(config: DictConfig) -> None:
    """The place of the data; what a source of the user's own makes of its place is its own affair."""
    if _source(config).startswith("ldm_lightning."):
        _check_exists("data.root", _needed(config, "data.root"))
        path = _needed(config, "data.source.path")
        if isinstance(path, str) and looks_local(path):  # else it may be a name in the hub
            _check_exists("data.source.path", path)


def _check_trained(config: DictConfig) -> None:
    """The trained models that a model stands on or is guided by."""
    # A job of a sweep has no name yet, and may go on with its own copy; a cache brings the first stage that made it.
    cached = _source(config).endswith(".LatentCache") and OmegaConf.select(config, "first_stage.run") is None
    if not is_sweep() and not cached and _needed(config, "first_stage.run") is not None:
        check_finished(first_stage_of(config))
    if (run := _needed(config, "guidance.run")) is not None:
        check_finished(Path(run))


def _source(config: DictConfig) -> str:
    return str(OmegaConf.select(config, "data.source._target_"))


def _needed(config: DictConfig, key: str) -> Any:
    """The value of ``key``; None where there is no such key."""
    return OmegaConf.select(config, key, throw_on_missing=True)
