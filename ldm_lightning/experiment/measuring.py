"""What the stages share when they are measured."""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass
from typing import Any

from hydra.utils import instantiate
from omegaconf import DictConfig
from tqdm import tqdm

from ldm_lightning.data.batch import Batch
from ldm_lightning.data.datamodule import DataModule
from ldm_lightning.data.loader import Loader
from ldm_lightning.errors import UserError
from ldm_lightning.evaluation.figures import Figures

__all__ = ["MOST", "Measured", "made", "reference_split", "watched"]

MOST = 1000  # items, if n leaves it open


@dataclass(frozen=True)
class Measured:
    """What a stage came to.

    Attributes:
        figures: by name.
        protocol: how they came about; ``reference`` names a split and ``n`` the number of items, ``real`` that of the
            real ones beside them if it may be another.
        sheet: the content of a picture to keep beside them.
    """

    figures: Figures
    protocol: dict[str, Any]
    sheet: bytes | None = None


def reference_split(config: DictConfig, data: DataModule) -> str:
    """The split that is the reference: the one asked for, else test pictures where there are any."""
    split: str = config.reference or ("test" if data.sizes["test"] else "validation")
    if not data.sizes.get(split):
        raise UserError(f"reference={split} holds no pictures (there are {data.sizes}): choose another")
    return split


def watched(batches: Loader, what: str) -> Generator[Batch, None, None]:
    """These batches with a bar, which is there once the first is asked for."""
    yield from tqdm(batches, desc=what, unit="batch")


def made(config: DictConfig, group: str) -> list[Any]:
    """What the option of this group describes, if one was chosen."""
    return [instantiate(config[group])] if config.get(group) else []
