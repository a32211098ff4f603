"""``ldm import``: a pretrained autoencoder of diffusers becomes the run folder of a first stage.

What it leaves is what training leaves: every verb takes it, and the original is not needed again. Its weights come from
``source``, but its scale does not: latents are standardized by what is measured on the pictures of ``data``.
"""

from __future__ import annotations

import re
from functools import partial
from pathlib import Path

import pytorch_lightning as pl
import torch
from hydra.utils import instantiate
from omegaconf import DictConfig, open_dict

from ldm_lightning.artifact import read_artifact
from ldm_lightning.callbacks.export import Export
from ldm_lightning.data.datamodule import DataModule
from ldm_lightning.errors import UserError
from ldm_lightning.experiment import build
from ldm_lightning.experiment.latent_data import adopt
from ldm_lightning.experiment.launch import make_trainer, settle
from ldm_lightning.experiment.run_folder import check_place, claim, lock, write_log
from ldm_lightning.experiment.schema import check, check_numbers
from ldm_lightning.experiment.trust import vetted
from ldm_lightning.interop.diffusers_format import autoencoder_node, import_weights, read_model
from ldm_lightning.latent.autoencoder import Autoencoder
from ldm_lightning.nn.conv_codec import check_size
from ldm_lightning.training.first_stage import FirstStage

__all__ = ["main"]


def main(config: DictConfig) -> None:
    """Import what is not imported yet."""
    _complete(config)
    model = read_model(config.source, config.subfolder)
    vetted(dict(model.config), Path(config.source, config.subfolder or "", "config.json"))
    with open_dict(config):
        config.first_stage.autoencoder = autoencoder_node(model)
    check(config, beside=[f"data.{key}" for key in build.DATA_SHORTCUTS])
    data = build.data_module(config)
    build.derive(config, data)
    with torch.device("meta"):  # the weights are there already
        autoencoder: Autoencoder = instantiate(config.first_stage.autoencoder)
    autoencoder.load_state_dict(import_weights(model.state_dict()), assign=True)
    module = build.first_stage(config, autoencoder)
    check_size(torch.empty(1, *data.shape, device="meta"), int(module.autoencoder.encoder.factor))  # type: ignore[arg-type]
    folder = Path(config.run_dir)
    claim(folder, build.resolve(config))
    with lock(folder):
        write_log(folder)
        if (folder / "export").exists():
            _compare(module, folder)
            print(f"{folder} is this first stage already")
        else:
            _export(config, module, data)
    given = model.config.get("scaling_factor")
    print(f"first stage: {folder / 'export'}")
    print(f"its latents are standardized as measured on the pictures; its own scaling_factor={given} is not used")
    condition = "" if data.num_classes else " condition=none"
    print(f"train on it: ldm train stage=latent_diffusion first_stage.run={folder} data=...{condition}")


def _complete(config: DictConfig) -> None:
    """Settle name and places."""
    check_numbers(config, {"statistics_pictures": int}, {"statistics_pictures": 1})
    config.source = str(config.source)
    config.subfolder = config.subfolder if config.subfolder is None else str(config.subfolder)
    if Path(config.source).is_dir():
        config.source = str(Path(config.source).absolute())
    if config.name is None:
        named = "-".join(filter(None, ("import", Path(config.source).name, config.subfolder)))
        config.name = re.sub(r"[^\w.-]+", "_", named)
    check_place(config)
    adopt(config)
    config.trainer.devices, config.trainer.precision = 1, "32-true"
    settle(config)


def _compare(module: FirstStage, folder: Path) -> None:
    """Refuse other weights than those that lie in ``folder``."""
    ours, theirs = module.autoencoder.state_dict(), read_artifact(folder, "first_stage").weights
    if ours.keys() != theirs.keys() or not all(torch.equal(value, theirs[name]) for name, value in ours.items()):
        raise UserError(f"{folder} already holds a first stage of other weights: choose another name=...")


def _export(config: DictConfig, module: FirstStage, data: DataModule) -> None:
    folder = Path(config.run_dir)
    trainer: pl.Trainer = make_trainer(config, default_root_dir=str(folder), logger=False, enable_checkpointing=False)
    module.trainer = trainer
    module.to(trainer.strategy.root_device)
    pictures = partial(data.loader, "train", config.statistics_pictures)
    Export(folder, build.resolve(config), pictures).write(trainer, module)
