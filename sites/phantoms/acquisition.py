"""A scanner's protocol as numbers, the path from a common protocol to a vendor's own, and what a
scan gives."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields, replace
from typing import TYPE_CHECKING, NamedTuple, TypeVar

import numpy as np

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

Parameters = TypeVar("Parameters", bound="DataclassInstance")


class Scan(NamedTuple):
    """A subject as scanned: the image (S, H, W) float32, what its anatomy says exactly, by form of
    label, and the spacing (slice, row, column) in mm."""

    image: np.ndarray
    labels: Mapping[str, np.ndarray]
    spacing_mm: tuple[float, float, float]


def interpolate(reference: Parameters, vendor: Parameters, shift: float) -> Parameters:
    """Return the parameters a fraction ``shift`` (0 to 1) of the way to ``vendor``'s.

    Every field is a number and moves linearly: 0 gives ``reference``, 1 gives ``vendor``.
    """
    moved = {}
    for item in fields(reference):
        start, end = getattr(reference, item.name), getattr(vendor, item.name)
        moved[item.name] = (1.0 - shift) * start + shift * end
    return replace(reference, **moved)
