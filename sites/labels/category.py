"""A category of the whole image: the column ``category`` of the manifest.

A label is (S,) uint8, the category's number on every slice.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from fedshift import UserError
from fedshift.sites.image import Decoded
from fedshift.sites.labels.base import Drawing, Form, Survey, check_meant, parts_by_name
from fedshift.sites.labels.meaning import LabelMapError
from fedshift.sites.legend import Legend
from fedshift.sites.names import fold
from fedshift.sites.readers import Contents
from fedshift.sites.settings import RESERVED, DataSettings, check_count
from fedshift.sites.types import IGNORED, ImageSource, Table

if TYPE_CHECKING:
    from matplotlib.axes import Axes


class Category(Form):
    """One name an image, of a list that is the federation's."""

    name = "category"
    dtype = np.uint8
    columns = ("category",)
    part = "category"
    marks = "categories"
    files = False
    says_parts = True
    together = False

    def parts(self, table: Table, data: DataSettings, survey: Survey) -> tuple[str, ...]:
        if (named := parts_by_name(data, self)) is not None:
            return named
        found: dict[str, str] = {}
        every = sorted({i.category for images in table.images.values() for i in images} - {""})
        for name in every:
            check_meant(name, self, str(data.manifest))
            if found.setdefault(fold(name), name) != name:
                raise UserError(
                    f"{data.manifest}: the categories {found[fold(name)]!r} and {name!r} differ in "
                    "capitals or spaces alone; spell them alike, or set data.labels."
                )
        parts = tuple(name for name in every if fold(name) not in RESERVED)
        check_count(parts, "the column category")
        return parts

    def read(self, source: ImageSource) -> Contents:
        return [(Path(source.path), source.category.encode())]

    def decode(
        self,
        source: ImageSource,
        contents: Contents,
        image: Decoded,
        data: DataSettings,
        meant: Legend | None = None,
    ) -> Drawing:
        """Ones (S,), of which the only name is the category."""
        return Drawing(np.ones(len(image.image), np.uint8), {1: source.category})

    def classify(
        self, drawing: Drawing, legend: Legend, source: ImageSource, image: np.ndarray
    ) -> np.ndarray:
        classes = legend.classes(drawing.names)
        if 1 not in classes:
            raise LabelMapError(
                f"{source.path} has {self.told(source, [1], drawing.names)}, which is none of the "
                "federation's; give it to one, or to background, in data.labels."
            )
        return np.full(len(image), classes[1], np.uint8)

    def blank(self, image: np.ndarray, parts: int) -> np.ndarray:
        return np.zeros(len(image), np.uint8)

    def looked_at(self, drawing: Drawing, native: np.ndarray, *, negative: bool) -> np.ndarray:
        """All slices, or none of an image whose category is to be ignored."""
        told: np.ndarray = native != IGNORED
        return told

    def shows(self, native: np.ndarray) -> tuple[int, ...]:
        return tuple(np.unique(native).tolist())

    def only(self, native: np.ndarray, told: Sequence[int]) -> np.ndarray:
        kept: np.ndarray = np.where(np.isin(native, [0, *told]), native, np.uint8(0))
        return kept

    def told(self, source: ImageSource, values: Sequence[int], names: Mapping[int, str]) -> str:
        return f"the category {source.category!r} (line {source.row} of the manifest)"

    def amounts(self, native: np.ndarray, parts: int, spacing_mm: Sequence[float]) -> np.ndarray:
        return np.array([(native == k).any() for k in range(1, parts + 1)])

    def draw(self, axes: Axes, label: np.ndarray, parts: Sequence[str]) -> None:
        """The category in words, in the upper left corner."""
        name = parts[int(label) - 1] if 0 < int(label) <= len(parts) else "none"
        axes.text(0.02, 0.98, name, color="white", va="top", transform=axes.transAxes)
