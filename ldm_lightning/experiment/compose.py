"""The shipped configuration: where it lies, and what it comes to with changes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import hydra
from hydra.core.global_hydra import GlobalHydra
from omegaconf import DictConfig

__all__ = ["compose", "conf_dir"]


def conf_dir() -> Path:
    """Absolute path of the shipped configuration: inside an installed package, or at the top of a checkout."""
    package = Path(__file__).resolve().parents[1]
    return package / "conf" if (package / "conf").is_dir() else package.parent / "conf"


def compose(verb: str, overrides: Sequence[str] = (), config_dir: str | Path | None = None) -> DictConfig:
    """What ``conf/<verb>.yaml`` comes to with changes.

    Args:
        verb: of the command line, such as "train".
        overrides: as the command line takes them, such as ``["experiment=mnist5k_first_stage", "seed=1"]``.
        config_dir: a folder of your own groups and options, as of ``--config-dir``.

    Raises:
        HydraException: an override names what there is not.
    """
    own = [] if config_dir is None else [f"hydra.searchpath=[file://{Path(config_dir).absolute()}]"]
    before = GlobalHydra.instance().hydra
    GlobalHydra.instance().clear()
    try:
        with hydra.initialize_config_dir(str(conf_dir()), version_base="1.3"):
            return hydra.compose(verb, [*overrides, *own])
    finally:
        GlobalHydra.instance().clear()
        if before is not None:
            GlobalHydra.instance().initialize(before)
