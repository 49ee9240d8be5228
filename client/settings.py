"""Dataclasses as settings: a config's mapping becomes a checked, typed object.

Every mistake a user can make in a method's settings ends here in one sentence that names the key.
"""

from __future__ import annotations

import dataclasses
import difflib
import math
from collections.abc import Iterable, Mapping
from typing import Any, Literal, TypeVar, get_args, get_origin, get_type_hints

from fedshift import UserError

T = TypeVar("T")


def setting(default: Any, *, at_least: float = -math.inf, at_most: float = math.inf) -> Any:
    """Return a dataclass field whose value must lie in [``at_least``, ``at_most``]."""
    return dataclasses.field(default=default, metadata={"range": (at_least, at_most)})


def from_mapping(cls: type[T], values: Mapping[str, Any], key: str) -> T:
    """Build the dataclass ``cls`` from ``values``; fields left out keep their defaults.

    Fields may be bool, int, float, str, a ``Literal`` of strings, or a dataclass of such fields.
    ``key`` is where ``values`` stands in the config. Raises :class:`fedshift.UserError` for an
    unknown key (with the nearest names), a wrong type, a value out of range or not finite.
    """
    fields = {field.name: field for field in dataclasses.fields(cls)}  # type: ignore[arg-type]
    hints = get_type_hints(cls)
    checked = {}
    for name, value in values.items():
        if name not in fields:
            raise UserError(f"{key}.{name} is not a setting{suggest(name, fields)}")
        low, high = fields[name].metadata.get("range", (-math.inf, math.inf))
        checked[name] = _checked(hints[name], value, f"{key}.{name}", low, high)
    return cls(**checked)


def suggest(name: str, known: Iterable[str]) -> str:
    """Return the end of a sentence that offers the known names, the nearest ones if any is near."""
    names = sorted(known)
    near = difflib.get_close_matches(name, names)
    if near:
        return f"; did you mean {' or '.join(near)}?"
    return f"; choose from {', '.join(names)}"


def _checked(kind: Any, value: Any, key: str, low: float, high: float) -> Any:
    if dataclasses.is_dataclass(kind):
        if not isinstance(value, Mapping):
            raise UserError(f"{key} must be a group of settings, not {value!r}")
        return from_mapping(kind, value, key)  # type: ignore[arg-type]
    if get_origin(kind) is Literal:
        choices = get_args(kind)
        if value not in choices:
            raise UserError(f"{key} must be one of {', '.join(choices)}, not {value!r}")
        return value
    # YAML writes 1 for 1.0, and in Python a bool is an int.
    accepted = (int, float) if kind is float else kind
    if not isinstance(value, accepted) or (isinstance(value, bool) and kind is not bool):
        raise UserError(f"{key} must be of type {kind.__name__}, not {value!r}")
    if kind is int or kind is float:
        if not math.isfinite(value):
            raise UserError(f"{key} must be a finite number, not {value!r}")
        if value < low:
            raise UserError(f"{key} must be at least {low:g}, not {value!r}")
        if value > high:
            raise UserError(f"{key} must be at most {high:g}, not {value!r}")
    return kind(value)
