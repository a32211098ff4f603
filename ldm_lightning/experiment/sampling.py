"""Samples of a trained second stage: how they are drawn, and of what."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from typing import Any

import torch
from hydra.utils import instantiate
from omegaconf import DictConfig, ListConfig
from torch import Tensor
from tqdm import tqdm

from ldm_lightning.data.dataset import encode_caption
from ldm_lightning.diffusion.guidance import Guidance
from ldm_lightning.diffusion.sampler import Sampler
from ldm_lightning.diffusion.self_conditioning import check_evaluated_once
from ldm_lightning.errors import UserError, nearest
from ldm_lightning.experiment.condition import class_number
from ldm_lightning.experiment.fit import check_sampler
from ldm_lightning.training.latent_diffusion import LatentDiffusion

__all__ = [
    "CONDITIONS",
    "Asked",
    "autocast",
    "choose_sampler",
    "conditions_in_turn",
    "describe",
    "draw",
    "encode_conditions",
]

CONDITIONS = {"classes": "class", "captions": "caption"}
"""What people ask for, and what a model calls it."""
Asked = dict[str, tuple[list[str], Tensor]]
"""For each condition of a model its values in words, and encoded, (K, ...)."""

_PRECISIONS = {"32-true": None, "bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}


def choose_sampler(module: LatentDiffusion, sampler: Sampler | None = None, steps: int | None = None) -> Sampler:
    """The run's sampler, or another, with that number of steps.

    Raises:
        UserError: it cannot draw from this model.
    """
    chosen = sampler or module.sampler
    check_sampler(chosen, module.denoiser)
    if module.objective.self_conditioning:
        check_evaluated_once(chosen)
    return chosen if steps is None else replace(chosen, steps=steps)  # type: ignore[type-var]


def describe(sampler: Sampler) -> str:
    """Its name and its cost, as protocols tell them."""
    return f"{type(sampler).__name__}, {sampler.evaluations} evaluations"


def encode_conditions(config: DictConfig, classes: Any = None, captions: Any = None) -> Asked:
    """What samples are to be of, for the model that ``config`` describes.

    Args:
        config: that the model was trained with.
        classes: names or numbers, one or several; all classes by default.
        captions: texts, one or several, for a model that reads them.

    Raises:
        UserError: there is no such class, the model does not read what is given, or lacks what it reads.
    """
    names, given = list(config.derived.class_names), {"classes": classes, "captions": captions}
    asked: Asked = {}
    if numbers := [class_number(name, names) for name in _several(classes)] or list(range(len(names))):
        asked["class"] = [names[number] for number in numbers], torch.tensor(numbers)
    if texts := [str(caption) for caption in _several(captions)]:
        length = config.data.caption_length
        asked["caption"] = texts, torch.stack([encode_caption(text, length) for text in texts])
    reads = instantiate(config.condition).reads
    for key, name in CONDITIONS.items():
        if given[key] is not None and name not in reads:
            read = " and ".join(reads) or "no condition"
            raise UserError(f"{key}={given[key]} changes nothing, since this model reads {read}: leave it out")
    if missing := [name for name in reads if name not in asked]:
        mend = "captions='a text', or captions=['one','two']" if missing == ["caption"] else "another run"
        raise UserError(f"this model draws by {' and '.join(missing)}, which is not given: add {mend}")
    return {name: asked[name] for name in reads}


def conditions_in_turn(asked: Asked, numbers: Tensor) -> dict[str, Tensor]:
    """The conditions of samples of these numbers (B,), each in turn; tensors by name, first dimension B."""
    return {name: values[numbers % len(values)] for name, (_, values) in asked.items()}


def draw(
    module: LatentDiffusion,
    batches: Sequence[Tensor],
    conditions: Callable[[Tensor], Mapping[str, Tensor]],
    *,
    seed: int,
    sampler: Sampler,
    guidance: Guidance | None = None,
    progress: bool = True,
) -> Iterator[tuple[Tensor, Tensor]]:
    """Standardized latents and what they decode to, on the CPU, a batch at a time; the split changes nothing.

    Args:
        module: the trained second stage.
        batches: the samples' numbers, each (B,) int64.
        conditions: gives the conditions of such numbers, by name, first dimension B.
        seed: of the samples.
        sampler: how they are drawn.
        guidance: instead of the module's.
        progress: whether to show a bar.

    Yields:
        Latents (B, c, *space) and items (B, C, *space) in [-1, 1].
    """
    with tqdm(total=sum(map(len, batches)), desc="sampling", unit="picture", disable=not progress) as bar:
        for numbers in batches:
            own = {name: value.to(module.device) for name, value in conditions(numbers).items()}
            z = module.sample_latents(numbers.to(module.device), own, seed, sampler, guidance)
            yield z.cpu(), module.first_stage.decode(z).cpu()
            bar.update(len(numbers))


def autocast(device: torch.device, precision: str | None) -> AbstractContextManager[Any]:
    """The precision that a network computes in, in Lightning's words; None and "32-true" leave it as it is.

    Raises:
        UserError: there is no such precision.
    """
    if precision is not None and precision not in _PRECISIONS:
        mend = nearest(precision, _PRECISIONS)
        raise UserError(f"precision={precision} is none of {', '.join(_PRECISIONS)}{mend}")
    dtype = _PRECISIONS[precision or "32-true"]
    return nullcontext() if dtype is None else torch.autocast(device.type, dtype)


def _several(value: Any) -> list[Any]:
    if value is None:
        return []
    return list(value) if isinstance(value, ListConfig | list | tuple | range) else [value]
