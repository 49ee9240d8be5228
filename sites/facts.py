"""What one image and its label are like, in numbers: what a survey keeps (:mod:`.survey`)."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from fedshift.sites.findings import Severity
from fedshift.sites.orientation import BandSums

MOST_VALUES = 4096
"""As many of a label file's values are kept: a value may be an object."""
HOUNSFIELD = np.arange(-1100, 3101, 4)
"""Edges of the bins in which CT values under a label are counted."""


@dataclass(frozen=True)
class Trouble:
    """Something found while one image and its label were read; ``on`` says in which file."""

    severity: Severity
    code: str
    on: Literal["image", "label"]
    problem: str
    way_out: str


@dataclass(frozen=True)
class Reach:
    """How far from the image's centre the labelled pixels lie, in the plane across one axis.

    The centres of ``counts[k]`` pixels lie ``k`` times ``step`` away along whichever of the two
    in-plane axes is further, to the nearest ``step``, which is half of the finer axis' pixel.
    ``furthest`` is how far away the outermost edge of a labelled pixel is. Both are in mm where the
    spacing is known, else in pixels.
    """

    step: float
    counts: tuple[int, ...]
    furthest: float

    def outside(self, half: float) -> float:
        """The share of the labelled pixels whose centres lie ``half`` or further away."""
        total = sum(self.counts)
        inside = sum(self.counts[: max(0, math.ceil(half / self.step - 1e-6))])
        return 1 - inside / total if total else 0.0


@dataclass(frozen=True)
class Facts:
    """What one image and its label are like.

    Three numbers in a row are along the canonical axes right, front, up (columns, rows, slices of
    an image without orientation). ``axis`` is the one that slices would run along if the image
    stood alone, ``clear`` says whether another axis was out of the question. ``spacing_mm`` is the
    header's or else the table's, None where neither says; ``oriented`` that there is a place in
    space. ``pixels`` hashes the decoded numbers, ``picture`` is a perceptual hash, ``low`` is the
    lowest value; ``modality`` is a code (:func:`.survey.modality_code`). Of a label: ``values``
    counts by value what it holds, such as voxels (the first :data:`MOST_VALUES` values only,
    ``n_values`` is how many there are), ``names`` are the file's own, ``labelled`` says by axis
    which slices hold something of it (a text of 0 and 1), and ``hounsfield`` counts the image's
    values under it in the bins of :data:`HOUNSFIELD`.
    """

    shape: tuple[int, int, int]
    axis: int
    clear: bool
    oriented: bool
    spacing_mm: tuple[float, float, float] | None
    modality: str
    pixels: str
    picture: str
    low: float
    values: Mapping[int, int] | None = None
    n_values: int = 0
    names: Mapping[int, str] = field(default_factory=dict)
    labelled: tuple[str, str, str] = ("", "", "")
    reach: tuple[Reach, ...] = ()
    hounsfield: tuple[int, ...] = ()
    bands: Mapping[int, Mapping[str, Sequence[float]]] = field(default_factory=dict)

    def band_sums(self, groups: Sequence[Iterable[int]]) -> BandSums:
        """The sums of :mod:`.orientation`, one row for each group of label values."""
        placements = {key for found in self.bands.values() for key in found}
        return BandSums(
            {
                (key[0] == "1", key[1] == "1", key[2] == "1"): np.array(
                    [
                        np.sum(
                            [np.zeros(6)] + [self.bands[v][key] for v in group if v in self.bands],
                            axis=0,
                        )
                        for group in groups
                    ]
                )
                for key in placements
            }
        )

    @property
    def has_labels(self) -> bool:
        """Whether the label holds a value above 0."""
        return bool(self.values) and any(value > 0 for value in self.values or ())

    def flags(self, axis: int) -> np.ndarray:
        """Which slices (S,) across ``axis`` hold a label; all False without one."""
        text = self.labelled[axis]
        return np.array([mark == "1" for mark in text or "0" * self.shape[axis]])


@dataclass(frozen=True)
class Surveyed:
    """One row of the table: ``facts`` is None where the image cannot be read. An image whose label
    cannot be used is ``left_out`` of a run all the same; its facts are then of the image alone."""

    facts: Facts | None
    troubles: tuple[Trouble, ...]
    left_out: bool = False
    subject: str = ""
    """Who the row is of; it stays with the site."""
