"""``ldm train``: one stage, from wherever its run folder stands."""

from __future__ import annotations

import logging
import re
import signal
import sys
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.types import RunMode
from hydra.utils import instantiate
from omegaconf import DictConfig
from pytorch_lightning.callbacks import TQDMProgressBar

from ldm_lightning.artifact import copy_artifact, read_artifact
from ldm_lightning.callbacks.checkpoints import AtomicCheckpointIO, latest
from ldm_lightning.callbacks.export import Export
from ldm_lightning.callbacks.interruption import Interruption
from ldm_lightning.callbacks.reseed import Reseed
from ldm_lightning.callbacks.rewind import RewindMetrics
from ldm_lightning.cli import build
from ldm_lightning.cli.curves import draw_curves
from ldm_lightning.cli.run_folder import claim, write_log
from ldm_lightning.cli.schema import check
from ldm_lightning.errors import UserError
from ldm_lightning.loggers.csv_log import CsvLogger
from ldm_lightning.nn.count import parameters

__all__ = ["main"]

log = logging.getLogger(__name__)


def main(config: DictConfig) -> float | None:
    """Train; returns the last validation loss, which sweepers minimize."""
    check(config, beside=[f"data.{key}" for key in build.DATA_SHORTCUTS])
    _name_sweep_job(config)
    pl.seed_everything(config.seed, workers=True, verbose=False)
    data = build.data_module(config)
    build.derive(config, data)
    folder = Path(config.run_dir).absolute()
    config.run_dir = str(folder)
    plain = build.resolve(config)
    module = build.stage(config)  # a configuration that cannot be built leaves no folder behind
    claim(folder, plain)
    write_log(folder)
    if finished := _finished(folder, config):
        log.info("%s is finished (step %d); give trainer.max_steps=... to go on", folder, finished)
        return None
    if config.stage == "latent_diffusion" and not (folder / "first_stage").exists():
        copy_artifact(config.first_stage.run, folder / "first_stage")

    interruption = Interruption()
    trainer = _trainer(config, folder, plain, interruption)
    checkpoint = latest(folder / "checkpoints")
    _announce(module, data, trainer, folder, checkpoint)
    try:
        trainer.fit(module, datamodule=data, ckpt_path=checkpoint, weights_only=True)
    finally:
        if "wandb" in sys.modules:
            sys.modules["wandb"].finish()  # else the next job of a sweep would go on in this one's run
    if interruption.signal is not None:
        if trainer.is_global_zero:
            name = signal.Signals(interruption.signal).name
            log.info("stopped by %s at step %d, saved; the same command goes on from there", name, trainer.global_step)
        raise SystemExit(128 + interruption.signal)
    _report(trainer, folder)
    loss = trainer.callback_metrics.get("val/loss")
    return None if loss is None else float(loss)


def _name_sweep_job(config: DictConfig) -> None:
    """Give every job of a sweep a folder of its own, named by what the sweep changes."""
    job = HydraConfig.get()
    if job.mode != RunMode.MULTIRUN:
        return
    alone = torch.cuda.device_count() < 2 if config.trainer.devices in ("auto", -1) else config.trainer.devices == 1
    if not alone and "Basic" in str(job.launcher._target_):
        raise UserError(
            "a sweep over several devices needs a launcher that starts one process per device: "
            "add hydra/launcher=submitit_slurm, or set trainer.devices=1"
        )
    typed = OverridesParser.create().parse_overrides([text for text in sys.argv[2:] if "=" in text])
    swept = {override.key_or_group for override in typed if override.is_sweep_override()}
    swept |= set((job.sweeper.get("params") or {}).keys())
    changes = [text for text in job.overrides.task if text.lstrip("+").partition("=")[0] in swept]
    config.name = f"{config.name}/{re.sub(r'[^A-Za-z0-9_.,=+-]+', '_', ','.join(changes)) or job.job.num}"


def _finished(folder: Path, config: DictConfig) -> int | None:
    """The step at which the run ended, if it did end as this configuration asks."""
    try:
        step = int(read_artifact(folder).manifest["step"])
    except UserError:
        return None
    return step if 0 < config.trainer.max_steps <= step else None


def _precision(asked: Any) -> Any:
    """bf16 is 50 to 100 times slower than fp32 on most processors, so it is a default on GPUs only."""
    if asked != "auto":
        return asked
    return "bf16-mixed" if torch.cuda.is_available() and torch.cuda.is_bf16_supported() else "32-true"


def _trainer(config: DictConfig, folder: Path, plain: dict[str, Any], interruption: Interruption) -> pl.Trainer:
    loggers = [CsvLogger(folder), *(instantiate(node) for node in config.logger.values())]
    for logger in loggers[1:]:
        logger.log_hyperparams(plain)
    # Export comes after whatever else runs at the end of training, so that it finds the measured statistics.
    callbacks = [*(instantiate(node) for node in config.callbacks.values()), Export(folder / "export", plain)]
    if config.trainer.enable_progress_bar:
        callbacks.append(TQDMProgressBar(refresh_rate=10))
    return instantiate(  # type: ignore[no-any-return]
        config.trainer,
        precision=_precision(config.trainer.precision),
        default_root_dir=str(folder),
        logger=loggers,
        callbacks=[interruption, Reseed(config.seed), RewindMetrics(), *callbacks],
        plugins=[AtomicCheckpointIO()],
        enable_checkpointing=True,
        _convert_="object",
    )


def _announce(
    module: pl.LightningModule, data: Any, trainer: pl.Trainer, folder: Path, checkpoint: Path | None
) -> None:
    if not trainer.is_global_zero:
        return
    sizes = ", ".join(f"{count:,} {split}" for split, count in data.sizes.items())
    log.info("%s: %.2f M parameters; data: %s pictures", type(module).__name__, parameters(module) / 1e6, sizes)
    log.info("run folder: %s", folder)
    if checkpoint is not None:
        log.info("resuming from %s", checkpoint.name)


def _report(trainer: pl.Trainer, folder: Path) -> None:
    if not trainer.is_global_zero:
        return
    curves = draw_curves(folder)
    log.info("model: %s", folder / "export")
    log.info("curves: %s", curves or f"{folder / 'metrics.csv'} (a picture of them needs matplotlib)")
    log.info("pictures during training: %s", folder / "samples")
