"""How a run is launched: on which device and in which precision, with absolute paths, under a name of its own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from hydra.core.hydra_config import HydraConfig
from hydra.errors import InstantiationException
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

from ldm_lightning.cli.run_folder import is_first_process, silence
from ldm_lightning.cli.sweep import changes, folder_name, is_sweep, record
from ldm_lightning.errors import UserError

__all__ = ["make_absolute", "make_trainer", "name_sweep_job", "settle"]


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
    if str(trainer.precision).endswith("-true") and trainer.precision != "32-true":
        raise UserError(f"trainer.precision={trainer.precision} is not supported: use 32-true, bf16-mixed or 16-mixed")
    for key in ("accumulate_grad_batches", "val_check_interval", "log_every_n_steps"):
        if trainer[key] < 1:
            raise UserError(f"trainer.{key}={trainer[key]} must be at least 1")
    if trainer.val_check_interval % trainer.accumulate_grad_batches:
        raise UserError(
            f"trainer.val_check_interval={trainer.val_check_interval} counts batches and must be a multiple of "
            f"trainer.accumulate_grad_batches={trainer.accumulate_grad_batches}"
        )
    if trainer.max_steps > 0:  # a short run is validated at its end
        batches = trainer.max_steps * trainer.accumulate_grad_batches
        trainer.val_check_interval = min(trainer.val_check_interval, batches)
    config.run_dir = str(Path(config.run_dir).absolute())
    make_absolute(config)


def make_absolute(config: DictConfig) -> None:
    """Make the paths of data and first stage absolute."""
    captions = OmegaConf.select(config, "data.captions")
    if (
        isinstance(captions, str)
        and not (Path(str(config.data.root)) / captions).is_file()
        and Path(captions).is_file()
    ):
        config.data.captions = str(Path(captions).absolute())
    for key in ("data.root", "data.pictures", "data.source.path", "first_stage.run"):
        value = OmegaConf.select(config, key)
        if isinstance(value, str) and Path(value).exists():
            OmegaConf.update(config, key, str(Path(value).absolute()))


def name_sweep_job(config: DictConfig) -> None:
    """Give every job of a sweep a folder of its own, named by what the sweep changes."""
    if not is_sweep():
        return
    alone = torch.cuda.device_count() < 2 if config.trainer.devices in ("auto", -1) else config.trainer.devices == 1
    if not alone and "Basic" in str(HydraConfig.get().launcher._target_):
        raise UserError(
            "a sweep over several devices needs a launcher that starts one process per device, such as "
            "hydra-submitit-launcher: choose it by hydra/launcher=..., or set trainer.devices=1"
        )
    overrides = changes()
    short = folder_name(overrides) or str(HydraConfig.get().job.num)
    if overrides and short != ",".join(overrides) and is_first_process():
        record(f"{config.name}/{short}", overrides)
    config.name = f"{config.name}/{short}"


def make_trainer(config: DictConfig, **more: Any) -> pl.Trainer:
    """Lightning's Trainer of ``config.trainer``.

    Raises:
        UserError: Lightning refuses a setting.
    """
    silence()
    try:
        return instantiate(config.trainer, **more, _convert_="object")  # type: ignore[no-any-return]
    except InstantiationException as error:
        reason = error.__cause__ or error
        raise UserError(f"trainer: {' '.join(str(reason).split())}") from error
