"""Training one stage, from wherever its run folder stands."""

from __future__ import annotations

import logging
import signal
import sys
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from hydra.utils import instantiate
from omegaconf import DictConfig
from pytorch_lightning.callbacks import TQDMProgressBar
from pytorch_lightning.utilities.exceptions import MisconfigurationException  # type: ignore[attr-defined]

from ldm_lightning.artifact import copy_artifact, read_artifact
from ldm_lightning.callbacks.checkpoint_files import AtomicCheckpointIO
from ldm_lightning.callbacks.course import AnnounceRate
from ldm_lightning.callbacks.export import Export, ExportAtValidation
from ldm_lightning.callbacks.interruption import Interruption
from ldm_lightning.callbacks.reseed import Reseed
from ldm_lightning.callbacks.resumption import Resumption
from ldm_lightning.data.datamodule import DataModule
from ldm_lightning.errors import UserError
from ldm_lightning.experiment import build
from ldm_lightning.experiment.latent_data import adopt
from ldm_lightning.experiment.launch import count_epochs, make_trainer, settle
from ldm_lightning.experiment.resume import check_resume, find_checkpoint
from ldm_lightning.experiment.run_folder import (
    SAME_COMMAND,
    check_place,
    claim,
    first_stage_of,
    is_first_process,
    lock,
    unlike_best,
    write_log,
)
from ldm_lightning.experiment.schema import check
from ldm_lightning.experiment.size import size
from ldm_lightning.experiment.stages import stage_of
from ldm_lightning.experiment.trainer_rules import check_trainer
from ldm_lightning.loggers.csv_log import CsvLogger
from ldm_lightning.loggers.curves import draw_curves

__all__ = ["fit", "train"]

log = logging.getLogger(__name__)


def fit(config: DictConfig) -> Path:
    """Train from Python what ``ldm train`` trains; called again, it goes on, or finds the run finished.

    Args:
        config: as of ``compose("train", [...])``, changed at will.

    Returns:
        The run folder, for :func:`~ldm_lightning.experiment.load.load`.

    Raises:
        UserError: settings that cannot be, or a run folder of another experiment.
        SystemExit: a signal has stopped it, once all is saved; the code is 128 and the signal's number.
    """
    check_place(config)
    check_trainer(config.trainer)
    train(config)
    return Path(config.run_dir)


def train(config: DictConfig) -> float | None:
    """Train the stage that ``config``, as of :func:`~ldm_lightning.experiment.compose.compose`, describes.

    Args:
        config: of the verb ``train``; what depends on machine, data and first stage is filled in.

    Returns:
        The last validation loss, which sweepers minimize.

    Raises:
        UserError: settings that cannot be, or a run folder of another experiment.
        SystemExit: a signal has stopped it, once all is saved; the code is 128 and the signal's number.
    """
    check(config, beside=[f"data.{key}" for key in build.DATA_SHORTCUTS])
    check_resume(config.resume)
    settle(config)
    adopt(config)
    folder = Path(config.run_dir)
    pl.seed_everything(config.seed, workers=True, verbose=False)
    data = build.data_module(config)
    build.derive(config, data)
    count_epochs(config, data)
    plain = build.resolve(config)
    stage = stage_of(config.stage)
    module = stage.build(config)  # a configuration that cannot be built leaves no folder behind
    interruption = Interruption()
    below = folder / "first_stage" if stage.stands_on_first_stage else None
    export = Export(folder, plain, lambda: data.loader("train", limit=config.get("statistics_pictures")), below)
    trainer = _trainer(config, folder, interruption, export)
    unlike = unlike_best(folder, plain)  # of the configuration that claim replaces
    claim(folder, plain)
    with lock(folder):
        write_log(folder)
        if unlike and is_first_process():
            log.warning(unlike)
        if config.resume == "auto" and (finished := _finished(folder, config)):
            log.info("%s is finished (step %d); give trainer.max_steps=... to go on", folder, finished["step"])
            loss: float | None = finished["metrics"].get("val/loss")
            return loss
        checkpoint = find_checkpoint(folder, config.resume, module.state_dict())
        if "run" in config.first_stage and is_first_process():
            copy_artifact(first_stage_of(config), folder / "first_stage")  # also in place of one it was begun with
        if trainer.is_global_zero:
            _announce(module, data, export, checkpoint)
        return _fit(trainer, module, data, interruption, export, checkpoint=checkpoint)


def _fit(
    trainer: pl.Trainer,
    module: pl.LightningModule,
    data: DataModule,
    interruption: Interruption,
    export: Export,
    *,
    checkpoint: Path | None,
) -> float | None:
    folder = export.run
    for logger in trainer.loggers:
        if not isinstance(logger, CsvLogger):
            logger.log_hyperparams(dict(export.config))
    try:
        trainer.fit(module, datamodule=data, ckpt_path=checkpoint, weights_only=True)
        if interruption.agreed is None:
            module.to(trainer.strategy.root_device)  # Lightning has moved it away
            export.write(trainer, module)
            export.publish(trainer)
    except MisconfigurationException as error:  # what only shows once the data and the module are there
        raise UserError(f"trainer: {' '.join(str(error).split())}") from error
    except RuntimeError as error:
        for child in getattr(trainer.strategy.launcher, "procs", ()):
            if child.poll():
                reason = f"process {child.pid} died (code {child.returncode}), and without it training cannot go on"
                raise UserError(f"{reason}: {SAME_COMMAND}") from error
        raise
    finally:
        if "wandb" in sys.modules:
            sys.modules["wandb"].finish()  # else the next job of a sweep would go on in this one's run
    if torch.distributed.is_initialized():
        # Its threads would now and then abort a process that ends before them. Not after an error, when the other ranks
        # may wait in a collective, and this one would wait for them.
        torch.distributed.destroy_process_group()
    if interruption.agreed is not None:
        if trainer.is_global_zero:
            name = signal.Signals(interruption.agreed).name
            log.info("stopped by %s at step %d, saved; the same command goes on", name, trainer.global_step)
        raise SystemExit(128 + interruption.agreed)
    _report(trainer, folder)
    loss = trainer.callback_metrics.get("val/loss")
    return None if loss is None else float(loss)


def _finished(folder: Path, config: DictConfig) -> dict[str, Any] | None:
    """The manifest of the run, if it ended as this configuration asks."""
    try:
        manifest = read_artifact(folder).manifest
    except UserError:
        return None
    return manifest if 0 < config.trainer.max_steps <= manifest["step"] else None


def _trainer(config: DictConfig, folder: Path, interruption: Interruption, export: Export) -> pl.Trainer:
    loggers = [CsvLogger(folder), *(instantiate(node) for node in config.logger.values() if node)]
    callbacks = [Resumption(), interruption, Reseed(config.seed), AnnounceRate()]
    callbacks += [instantiate(node) for node in config.callbacks.values() if node]
    if stage_of(config.stage).exports_at_validation:
        callbacks.append(ExportAtValidation(export))  # a first stage's statistics would cost too much each time
    if config.trainer.enable_progress_bar:
        callbacks.append(TQDMProgressBar(refresh_rate=10))
    return make_trainer(
        config,
        default_root_dir=str(folder),
        logger=loggers,
        callbacks=callbacks,
        plugins=[AtomicCheckpointIO()],
        enable_checkpointing=True,
    )


def _announce(module: pl.LightningModule, data: DataModule, export: Export, checkpoint: Path | None) -> None:
    operations = stage_of(str(export.config["stage"])).operations(module, data)
    sizes = ", ".join(f"{count:,} {split}" for split, count in data.sizes.items())
    log.info("%s: %s", type(module).__name__, size(module, operations))
    log.info("data: %s pictures", sizes)
    log.info("run folder: %s", export.run)
    if checkpoint is not None:
        log.info("resuming from %s", checkpoint.name)


def _report(trainer: pl.Trainer, folder: Path) -> None:
    if not trainer.is_global_zero:
        return
    places = {
        "model": folder / "export",
        "figures": folder / "metrics.csv",
        "curves": draw_curves(folder),
        "pictures during training": folder / "samples",
    }
    for what, place in places.items():
        if place and place.exists():  # a short run may have logged nothing
            log.info("%s: %s", what, place)
