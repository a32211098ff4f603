"""What every path answers, and who is for which path."""

from __future__ import annotations

import typing
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, Protocol

from torch import Tensor

from ldm_lightning.diffusion.schedule import Schedule
from ldm_lightning.errors import UserError
from ldm_lightning.rng import Streams

__all__ = ["Path", "check_path", "expand"]


class Path(Protocol):
    """A corruption of clean data; t = 0 is clean, t = 1 is noise. Latents are (B, C, *space), times (B,) in [0, 1].

    Attributes:
        suits: by configuration group, a choice that works on this path.
    """

    suits: ClassVar[Mapping[str, str]]

    @property
    def schedule(self) -> Schedule:
        """Signal and noise over time; a path without them has one that raises UserError when it is asked."""
        ...

    def coefficients(self, t: Tensor, like: Tensor) -> tuple[Tensor, ...]:
        """The numbers that describe the corruption at t, viewed so that they broadcast over ``like``."""
        ...

    def noise(self, streams: Streams, shape: Sequence[int]) -> Tensor:
        """(B, *shape) numbers for :meth:`corrupt`, every sample's from its own stream."""
        ...

    def corrupt(self, z0: Tensor, t: Tensor, noise: Tensor) -> Tensor:
        """Draw z_t from q(z_t | z_0)."""
        ...

    def prior(self, streams: Streams, shape: Sequence[int]) -> Tensor:
        """Draw z_1 (B, *shape), where sampling starts."""
        ...

    def loss(self, output: Tensor, target: Tensor) -> Tensor:
        """(B,) loss of the network's output, averaged over a sample's dimensions."""
        ...


def expand(t: Tensor, like: Tensor) -> Tensor:
    """View (B,) as (B, 1, ..., 1) with as many dimensions as ``like``."""
    return t.view(-1, *[1] * (like.ndim - 1))


def check_path(group: str, method: Callable[..., Any], path: Path) -> None:
    """Refuse what is not written for ``path``: the annotation of an argument ``path`` says which paths it is for.

    Args:
        group: the configuration group it is chosen by, such as "sampler".
        method: a bound method that takes a path; without an annotation, or with ``Any``, it is for all.
        path: the path at hand.

    Raises:
        UserError: it is for other paths.
    """
    try:
        kinds = typing.get_type_hints(method).get("path", Any)
    except NameError:  # an annotation that only a type checker can resolve
        return
    kinds = typing.get_args(kinds) or (kinds,)
    if Any in kinds or isinstance(path, kinds):
        return
    wanted = " or ".join(kind.__name__ for kind in kinds)
    mend = f": choose {group}={path.suits[group]}, or another path" if group in path.suits else ""
    name = type(method.__self__).__name__  # type: ignore[attr-defined]
    raise UserError(f"{group}: {name} is for a {wanted}, but the path is a {type(path).__name__}{mend}")
