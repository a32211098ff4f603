"""First stages in the format of diffusers, a folder with ``config.json`` and weights: read and written.

Both formats hold the same tensors: names in ours begin with the half that they belong to, and VQModel's book lies in
the bottleneck.
"""

from __future__ import annotations

import filecmp
import inspect
import json
import logging
import tempfile
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ldm_lightning.errors import UserError, first_line, needs_extra
from ldm_lightning.interop.hub import check_source
from ldm_lightning.latent.autoencoder import Autoencoder
from ldm_lightning.latent.bottleneck import Bottleneck, Gaussian, Identity, VectorQuantizer
from ldm_lightning.nn import ConvEncoder, DeepEncoder, DiffusersEncoder
from ldm_lightning.nn.diffusers_codec import MODELS, build_model, latent_channels

__all__ = ["autoencoder_node", "export_weights", "import_weights", "model_of", "read_model", "write_model"]

_BOOK = "quantize.embedding.weight"
_BOTTLENECKS: dict[str, type[Bottleneck]] = dict(zip(MODELS, (Gaussian, VectorQuantizer, Identity), strict=True))
_OTHERWISE = {
    ConvEncoder: "AutoencoderKL and VQModel widen in another place and pad otherwise where they halve the side",
    DeepEncoder: "its residual blocks are not those of AutoencoderDC",
}


def read_model(source: str, subfolder: str | None) -> Any:
    """The autoencoder of diffusers that lies in the folder ``source``, or in the hub's repository of this name.

    Raises:
        UserError: diffusers is missing, there is none, it is damaged, or of a class that is not supported.
    """
    try:
        import diffusers
    except ImportError as error:
        raise needs_extra("diffusers", "diffusers") from error
    place = f"{source}/{subfolder}" if subfolder else source
    check_source(source)
    local = Path(source).is_dir()
    where: dict[str, Any] = {"subfolder": subfolder} if subfolder else {}
    if not local:
        print(f"reading {place} from the hub")
        where["local_files_only"] = not _hub_answers(source, subfolder)
    try:
        with _quiet():
            config = diffusers.AutoencoderKL.load_config(source, **where)
    except Exception as error:  # whatever a dead network, a missing or a damaged file raises
        if local:
            raise UserError(
                f"{place} holds no readable config.json of an autoencoder: add subfolder=vae if it is a whole pipeline"
            ) from error
        raise UserError(
            f"{place} is no folder, and the hub gives none of this name: check spelling, network and access, add "
            f"subfolder=vae if it is a whole pipeline ({first_line(error)})"
        ) from error
    name = config.get("_class_name")
    if name not in MODELS:
        raise UserError(f"{place} holds a model of class {name}: supported are {', '.join(MODELS)}")
    try:
        with _quiet():
            model, found = getattr(diffusers, name).from_pretrained(
                source, output_loading_info=True, low_cpu_mem_usage=False, **where
            )
    except Exception as error:  # likewise
        raise UserError(f"{place} holds no readable weights of its {name}: {first_line(error)}") from error
    if found["missing_keys"]:
        raise UserError(f"the weights in {place} are incomplete: {found['missing_keys'][0]} is missing; restore them")
    return model.float().eval()


def _hub_answers(source: str, subfolder: str | None) -> bool:
    """Whether the hub says anything, asked once: left to itself, its client tries an unreachable one half a minute."""
    import huggingface_hub

    try:
        huggingface_hub.get_hf_file_metadata(
            huggingface_hub.hf_hub_url(source, "config.json", subfolder=subfolder), timeout=5
        )
    except huggingface_hub.errors.HfHubHTTPError:  # a refusal is an answer, whose reason the loader tells
        return True
    except Exception:  # whatever a dead network raises, or a name that is none; there may still be an earlier download
        return False
    return True


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep both packages from talking of what is raised or does not matter."""
    loggers = [logging.getLogger(name) for name in ("diffusers", "huggingface_hub")]
    levels = [logger.level for logger in loggers]
    try:
        for logger in loggers:
            logger.setLevel(logging.CRITICAL)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def autoencoder_node(model: Any) -> dict[str, Any]:
    """The configuration of ``model`` as our autoencoder."""
    known = inspect.signature(type(model).__init__).parameters
    config = json.loads(json.dumps({key: value for key, value in model.config.items() if key in known}))
    name = type(model).__name__

    def target(made: type, **arguments: Any) -> dict[str, Any]:
        return {"_target_": f"{made.__module__}.{made.__qualname__}", **arguments}

    def half(made: str) -> dict[str, Any]:
        place = f"ldm_lightning.nn.diffusers_codec.{made}"
        return {"_target_": place, "_partial_": True, "_convert_": "all", "model": name, "config": config}

    own = {"VQModel": {"codes": config.get("num_vq_embeddings")}, "AutoencoderDC": {"std": None}}.get(name, {})
    return target(
        Autoencoder,
        in_channels="${derived.channels}",
        encoder=half("DiffusersEncoder"),
        decoder=half("DiffusersDecoder"),
        bottleneck=target(_BOTTLENECKS[name], latent_channels=latent_channels(model), **own),
    )


def import_weights(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Weights of diffusers by the names of our autoencoder."""
    named: dict[str, Tensor] = {}
    for name, value in weights.items():
        if name == _BOOK:  # each code counts as used once, by itself
            named |= {"bottleneck.book": value, "bottleneck.sums": value.clone()}
            named["bottleneck.counts"] = torch.ones(len(value))
        else:
            named[f"{'encoder' if name.startswith(('encoder.', 'quant_conv.')) else 'decoder'}.{name}"] = value
    return named


def export_weights(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The other way."""
    named = {_BOOK: weights["bottleneck.book"]} if "bottleneck.book" in weights else {}
    halves = {name.partition(".")[::2]: value for name, value in weights.items()}
    return named | {rest: value for (half, rest), value in halves.items() if half != "bottleneck"}


def model_of(autoencoder: Autoencoder, changes: Mapping[str, Any]) -> Any:
    """``autoencoder`` as a model of diffusers.

    Args:
        autoencoder: with its weights.
        changes: of the configuration, such as its scale.

    Raises:
        UserError: diffusers has no such architecture.
    """
    encoder, bottleneck = autoencoder.encoder, autoencoder.bottleneck
    if not isinstance(encoder, DiffusersEncoder):
        why = f": {_OTHERWISE[type(encoder)]}" if type(encoder) in _OTHERWISE else ""
        raise UserError(
            f"diffusers has no architecture for {type(encoder).__name__}{why}; what is to be exported is trained by "
            "first_stage=diffusers_kl or another diffusers_*"
        )
    if type(bottleneck) is not _BOTTLENECKS[encoder.model]:
        raise UserError(f"diffusers has no {encoder.model} with the bottleneck {type(bottleneck).__name__}")
    model = build_model(encoder.model, {**encoder.config, **changes})
    model.load_state_dict(export_weights(autoencoder.state_dict()))
    return model


def write_model(model: Any, folder: Path) -> None:
    """Save ``model`` to ``folder``; ``config.json``, without which there is no model, comes last.

    What a killed writer left is completed.

    Raises:
        UserError: the folder holds something else.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".", dir=folder) as temporary:
        model.save_pretrained(temporary)
        names = sorted(
            (file.name for file in Path(temporary).iterdir()), key=lambda name: (name == "config.json", name)
        )
        there = {file.name for file in folder.iterdir() if not file.name.startswith(".")}
        same = set(filecmp.cmpfiles(temporary, folder, names, shallow=False)[0])
        if not (same >= set(names) or same >= there):  # neither all of the model is there, nor nothing but of it
            raise UserError(f"output={folder} holds something else: choose another folder")
        for name in names:
            if name not in same:
                (Path(temporary) / name).rename(folder / name)
