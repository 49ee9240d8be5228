"""Dataclasses as settings: a config's mapping becomes a checked, typed object.

Every mistake a user can make in a node of the configuration ends here, in one sentence that names
the key.
"""

from __future__ import annotations

import dataclasses
import difflib
import math
from collections.abc import Iterable, Mapping
from types import NoneType, UnionType
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from fedshift import UserError

T = TypeVar("T")


def setting(default: Any, *, at_least: float = -math.inf, at_most: float = math.inf) -> Any:
    """Return a dataclass field whose number must lie in [``at_least``, ``at_most``]."""
    return dataclasses.field(default=default, metadata={"range": (at_least, at_most)})


def from_mapping(cls: type[T], values: Mapping[str, Any], key: str = "") -> T:
    """Build the dataclass ``cls`` from ``values``; fields left out keep their defaults.

    Fields may be bool, int, float, str, a ``Literal`` of strings, ``tuple[X, ...]``, a union of
    these or ``None``, or a dataclass of such fields. ``key`` is where ``values`` stands in the
    config; a dataclass with a ``NODE`` stands there, whatever it is a field of.
    Raises :class:`fedshift.UserError` for an unknown key (with the nearest names), a wrong type, a
    value out of range or not finite, and a field left out that has no default.
    """
    fields = {field.name: field for field in dataclasses.fields(cls)}  # type: ignore[arg-type]
    hints = get_type_hints(cls)
    prefix = f"{key}." if key else ""
    checked = {}
    for name, value in values.items():
        if name not in fields:
            raise UserError(f"{prefix}{name} is not a setting{suggest(name, fields)}")
        bounds = fields[name].metadata.get("range", (-math.inf, math.inf))
        checked[name] = _checked(hints[name], value, f"{prefix}{name}", bounds)
    for name, field in fields.items():
        if (
            name not in checked
            and field.init
            and (field.default is field.default_factory is dataclasses.MISSING)
        ):
            raise UserError(f"{prefix}{name} has no default; give it a value")
    return cls(**checked)


def suggest(name: str, known: Iterable[str]) -> str:
    """Return the end of a sentence that offers the known names, the nearest ones if any is near."""
    names = sorted(known)
    near = difflib.get_close_matches(name, names)
    if near:
        return f"; did you mean {' or '.join(near)}?"
    return f"; choose from {', '.join(name for name in names if '.' not in name)}"


def _checked(kind: Any, value: Any, key: str, bounds: tuple[float, float]) -> Any:
    origin, inner = get_origin(kind), get_args(kind)
    if dataclasses.is_dataclass(kind):
        if not isinstance(value, Mapping):
            raise UserError(f"{key} must be a group of settings, not {value!r}")
        return from_mapping(kind, value, getattr(kind, "NODE", key))  # type: ignore[arg-type]
    if origin in (Union, UnionType):
        return _one_of(inner, value, key, bounds)
    if origin is tuple:
        if not isinstance(value, list | tuple):
            raise UserError(f"{key} must be a list, not {value!r}")
        return tuple(_checked(inner[0], item, key, bounds) for item in value)
    if origin is Literal:
        if value not in inner:
            raise UserError(f"{key} must be one of {', '.join(inner)}, not {value!r}")
        return value
    # YAML writes 1 for 1.0, and in Python a bool is an int.
    accepted = (int, float) if kind is float else kind
    if not isinstance(value, accepted) or (isinstance(value, bool) and kind is not bool):
        raise UserError(f"{key} must be of type {kind.__name__}, not {value!r}")
    if kind is int or kind is float:
        low, high = bounds
        if not math.isfinite(value):
            raise UserError(f"{key} must be a finite number, not {value!r}")
        if value < low:
            raise UserError(f"{key} must be at least {low:g}, not {value!r}")
        if value > high:
            raise UserError(f"{key} must be at most {high:g}, not {value!r}")
    return kind(value)


def _one_of(kinds: tuple[Any, ...], value: Any, key: str, bounds: tuple[float, float]) -> Any:
    """Check against the members of a union; the last one's complaint names the others."""
    if value is None and NoneType in kinds:
        return None
    *others, last = [kind for kind in kinds if kind is not NoneType]
    for kind in others:
        try:
            return _checked(kind, value, key, bounds)
        except UserError:
            continue
    try:
        return _checked(last, value, key, bounds)
    except UserError as error:
        words = ["null"] if NoneType in kinds else []
        words += [word for kind in others for word in get_args(kind)]
        raise UserError(f"{error} (or {' or '.join(words)})") from error
