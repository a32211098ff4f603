"""``ldm finish``: the model of a run from one of its checkpoints, without training on."""

from __future__ import annotations

from omegaconf import DictConfig

from ldm_lightning.experiment.finish import finish

__all__ = ["main"]


def main(config: DictConfig) -> None:
    """Write the model, and say of which step it is."""
    done = finish(config.run, config.checkpoint, config.root)
    loss = f", val/loss {done.metrics['val/loss']:.4g}" if "val/loss" in done.metrics else ""
    print(f"model of step {done.step}{loss} ({done.checkpoint.name}): {done.folder}")
    print(f"use it: run={done.folder.parent}")
