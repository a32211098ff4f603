"""What Hydra writes about a sweep: ``multirun.yaml``, which a later sweep of the same place must not replace."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from hydra.experimental.callback import Callback
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from ldm_lightning.artifact import set_aside

__all__ = ["KeepMultirun"]


class KeepMultirun(Callback):
    """Keeps the ``multirun.yaml`` of another sweep as ``multirun-1.yaml``, ``multirun-2.yaml`` ..."""

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Called before Hydra writes its own; that of the same sweep, which is repeated, stays."""
        try:
            file = Path(config.hydra.sweep.dir) / "multirun.yaml"
        except OmegaConfBaseException:  # a place that is still to be named, which Hydra goes on to say
            return
        if file.is_file() and file.read_text() != OmegaConf.to_yaml(config):
            print(f"{file} is of another sweep: it is kept as {set_aside(file).name}")
