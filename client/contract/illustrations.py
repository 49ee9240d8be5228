"""Pictures of what a method does with a site's images: a method gives the arrays, and
:mod:`fedshift.client.illustrations` draws them where the images are. They never leave the site."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np


@dataclass(frozen=True)
class ImageGrid:
    """Images in rows and columns, all of one size.

    ``images[row][column]`` is (H, W) float, or None for an empty place. A column whose index is in
    ``signed`` shows differences, in two colours around zero; all others are grey, each row on one
    common scale. ``name`` is a file's name: lower-case letters, digits and underscores.
    """

    name: str
    title: str
    caption: str
    images: Sequence[Sequence[np.ndarray | None]]
    columns: Sequence[str]
    rows: Sequence[str]
    signed: frozenset[int] = frozenset()


@dataclass(frozen=True)
class Scatter:
    """Points in a plane, in named groups: ``groups`` maps a name to (N, 2)."""

    name: str
    title: str
    caption: str
    groups: Mapping[str, np.ndarray]
    axes: tuple[str, str] = ("", "")


@dataclass(frozen=True)
class Curves:
    """Values over ``x``: ``lines`` maps a name to (len(x),), nan where there is none."""

    name: str
    title: str
    caption: str
    x: np.ndarray
    lines: Mapping[str, np.ndarray] = field(default_factory=dict)
    axes: tuple[str, str] = ("", "")


Illustration = ImageGrid | Scatter | Curves
