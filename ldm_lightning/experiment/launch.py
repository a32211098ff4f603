"""How a run is launched: on which device and in which precision, with absolute paths, under a name of its own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from hydra.errors import InstantiationException
from hydra.utils import instantiate
from omegaconf import DictConfig, ListConfig, OmegaConf

from ldm_lightning.data.captions import in_current_folder
from ldm_lightning.data.datamodule import DataModule
from ldm_lightning.data.files import open_files
from ldm_lightning.errors import UserError
from ldm_lightning.experiment.run_folder import silence

__all__ = ["count_epochs", "make_absolute", "make_trainer", "settle"]


def settle(config: DictConfig) -> None:
    """Replace what depends on machine and folder by what it comes to, so that the run folder records it."""
    trainer = config.trainer
    if trainer.accelerator == "auto":
        # Apple's GPUs know no float64, which random numbers and statistics need.
        trainer.accelerator = "cuda" if torch.cuda.is_available() else "cpu"
    if trainer.precision == "auto":
        # bf16 is 50 to 100 times slower than fp32 where it is emulated: on most processors and older GPUs.
        fast = trainer.accelerator in ("cuda", "gpu") and torch.cuda.is_bf16_supported(including_emulation=False)
        trainer.precision = "bf16-mixed" if fast else "32-true"
    _check_devices(trainer)
    _validate_at_the_end(trainer)
    config.run_dir = str(Path(config.run_dir).absolute())
    make_absolute(config)


def _check_devices(trainer: DictConfig) -> None:
    """Refuse devices that this machine does not have."""
    devices, given = trainer.devices, f"trainer.devices={trainer.devices}"
    if trainer.accelerator == "cpu":
        if devices != "auto" and not (str(devices).isdecimal() and int(devices) > 0):
            raise UserError(f"{given}, but of a processor only a number of processes can be asked for, or auto")
        return
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if not count:
        raise UserError(f"trainer.accelerator={trainer.accelerator}, but torch finds no GPU here: leave it out")
    if isinstance(devices, ListConfig) or "," in str(devices):
        numbers = devices if isinstance(devices, ListConfig) else filter(None, devices.split(","))
        fits = max(map(int, numbers)) < count
    else:
        fits = devices in ("auto", -1) or int(devices) <= count
    if not fits:
        raise UserError(f"{given}, but there are {count} GPUs here, with numbers from 0 to {count - 1}")


def _validate_at_the_end(trainer: DictConfig) -> None:
    """Let also a run that is shorter than the interval be validated."""
    if trainer.max_steps > 0:
        batches = trainer.max_steps * trainer.accumulate_grad_batches
        trainer.val_check_interval = min(trainer.val_check_interval, batches)


def count_epochs(config: DictConfig, data: DataModule) -> None:
    """Turn ``trainer.check_val_every_n_epoch`` into the number of batches that it comes to, which all else counts.

    Raises:
        UserError: ``trainer.limit_train_batches`` leaves no batch of an epoch.
    """
    trainer, batches = config.trainer, data.sizes["train"] // data.batch_size
    limit = trainer.get("limit_train_batches")
    if limit is not None:
        batches = min(limit, batches) if isinstance(limit, int) else int(limit * batches)
    if batches < 1:
        raise UserError(f"trainer.limit_train_batches={limit} leaves no batch of an epoch: set it to 1 or more")
    if trainer.check_val_every_n_epoch is not None:
        trainer.val_check_interval = trainer.check_val_every_n_epoch * batches
        trainer.check_val_every_n_epoch = None
        _validate_at_the_end(trainer)


def make_absolute(config: DictConfig) -> None:
    """Make the paths of data and first stage absolute."""
    captions, root = (OmegaConf.select(config, key) for key in ("data.captions", "data.root"))
    # A table beside the pictures moves along with them; one that lies here is found again from anywhere.
    if isinstance(captions, str) and isinstance(root, str) and Path(captions).expanduser().is_file():
        config.data.captions = str(in_current_folder(captions, open_files(Path(root).expanduser())) or captions)
    for key in ("data.root", "data.pictures", "data.source.path", "first_stage.run"):
        value = OmegaConf.select(config, key)
        if isinstance(value, str) and Path(value).exists():
            OmegaConf.update(config, key, str(Path(value).absolute()))


def make_trainer(config: DictConfig, **more: Any) -> pl.Trainer:
    """Lightning's Trainer of ``config.trainer``.

    Raises:
        UserError: Lightning refuses a setting.
    """
    if config.trainer.accelerator == "cpu" and str(config.trainer.precision).startswith("16"):
        # Lightning would take bfloat16 instead.
        raise UserError(
            f"trainer.precision={config.trainer.precision} needs a GPU: set trainer.precision=32-true, or bf16-mixed "
            "where the processor has it"
        )
    silence()
    try:
        return instantiate(config.trainer, **more, _convert_="object")  # type: ignore[no-any-return]
    except InstantiationException as error:
        reason = error.__cause__ or error
        raise UserError(f"trainer: {' '.join(str(reason).split())}") from error
