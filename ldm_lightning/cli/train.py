"""``ldm train``: one stage, from wherever its run folder stands."""

from __future__ import annotations

from omegaconf import DictConfig

from ldm_lightning.cli.sweep import name_sweep_job
from ldm_lightning.experiment.train import train

__all__ = ["main"]


def main(config: DictConfig) -> float | None:
    """Train; returns the last validation loss, which sweepers minimize."""
    name_sweep_job(config)
    return train(config)
