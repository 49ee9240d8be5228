"""A scanner's protocol as numbers, and the path from a common protocol to a vendor's own."""

from __future__ import annotations

from dataclasses import fields, replace
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

Parameters = TypeVar("Parameters", bound="DataclassInstance")


def interpolate(reference: Parameters, vendor: Parameters, shift: float) -> Parameters:
    """Return the parameters a fraction ``shift`` (0 to 1) of the way to ``vendor``'s.

    Every field is a number and moves linearly: 0 gives ``reference``, 1 gives ``vendor``.
    """
    moved = {}
    for item in fields(reference):
        start, end = getattr(reference, item.name), getattr(vendor, item.name)
        moved[item.name] = (1.0 - shift) * start + shift * end
    return replace(reference, **moved)
