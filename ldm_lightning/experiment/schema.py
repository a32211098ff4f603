"""Configuration checked against constructor signatures, before anything is built.

Every ``_target_`` names a callable whose signature is the schema of its node: a key that is no argument, and a value
that is not of an argument's plain type (int, float, bool, str), is the user's mistake and is reported by its full key.
"""

from __future__ import annotations

import inspect
import types
import typing
from collections.abc import Collection, Mapping
from typing import Any

from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import InterpolationToMissingValueError

from ldm_lightning.errors import UserError, nearest
from ldm_lightning.experiment.locate import locate

__all__ = ["check", "check_numbers"]

_PLAIN = (int, float, bool, str)


def check(node: DictConfig | ListConfig, beside: Collection[str] = ()) -> None:
    """Check a configuration node and all below it.

    Args:
        node: any node; those without ``_target_`` are only walked through.
        beside: full keys that are allowed although no constructor takes them.

    Raises:
        UserError: the first key or value that does not fit, by its full name, or a name that leads to nothing.
    """
    target = str(node["_target_"]) if isinstance(node, DictConfig) and "_target_" in node else None
    hints = None if target is None else _hints(target)
    for key in node if isinstance(node, DictConfig) else range(len(node)):
        if OmegaConf.is_missing(node, key):
            continue
        try:
            value = node[key]  # type: ignore[index]
        except InterpolationToMissingValueError:
            continue  # a fact that is only known once the data are
        name, argument = node._get_full_key(key), str(key)
        if hints is not None and not argument.startswith("_") and name not in beside:
            if argument not in hints:
                taken = f"{str(target).rpartition('.')[2]} takes no '{argument}'{nearest(argument, hints)}"
                raise UserError(f"there is no configuration key '{name}': {taken}")
            _check_value(name, value, hints[argument])
        if isinstance(value, DictConfig | ListConfig):
            check(value, beside)


def _hints(target: str) -> dict[str, Any] | None:
    """Argument names and their types (Any where not annotated); None where any name is taken."""
    made = locate(target)
    arguments = inspect.signature(made).parameters
    if any(argument.kind is argument.VAR_KEYWORD for argument in arguments.values()):
        return None
    try:
        types_by_name = typing.get_type_hints(made.__init__ if inspect.isclass(made) else made)
    except (NameError, TypeError):  # an annotation that only a type checker can resolve
        types_by_name = {}
    return {name: types_by_name.get(name, Any) for name in arguments}


def _check_value(name: str, value: Any, hint: Any) -> None:
    kinds = typing.get_args(hint) if typing.get_origin(hint) in (typing.Union, types.UnionType) else (hint,)
    allowed = [kind for kind in kinds if kind is not types.NoneType]
    if value is None and types.NoneType in kinds:
        return
    if not allowed or any(kind not in _PLAIN for kind in allowed):
        return
    accepted = (*allowed, int) if float in allowed else tuple(allowed)
    if not isinstance(value, accepted) or (isinstance(value, bool) and bool not in allowed):
        wanted = " or ".join(kind.__name__ for kind in allowed)
        raise UserError(f"{name}={value} is not of type {wanted}")


def check_numbers(config: DictConfig, kinds: Mapping[str, type[int] | type[float]], least: Mapping[str, float]) -> None:
    """Check a verb's own numeric keys; null is allowed where the verb's yaml says null.

    Args:
        config: the verb's configuration.
        kinds: int or float by key.
        least: smallest value by key, where there is one.

    Raises:
        UserError: the first value that is not of its type or too small.
    """
    for key, kind in kinds.items():
        value = config[key]
        if value is not None:
            _check_value(key, value, kind)
            if value < least.get(key, value):
                raise UserError(f"{key}={value} must be at least {least[key]:g}")
