"""Instances: every object of one kind by a number of its own, as in files of instance masks.

A label is (S, R, C) uint16: 0 where there is none, else the object's number.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from fedshift import UserError
from fedshift.sites import geometry, readers
from fedshift.sites.alignment import lay_on
from fedshift.sites.geometry import Grid
from fedshift.sites.image import Decoded
from fedshift.sites.labels.base import Drawing, Form, Survey, named_parts
from fedshift.sites.legend import Legend
from fedshift.sites.settings import DataSettings
from fedshift.sites.types import ImageSource, Table

if TYPE_CHECKING:
    from matplotlib.axes import Axes

OBJECT = "object"
"""What the objects are called where ``data.labels`` does not say."""


class Instances(Form):
    """Objects of one kind."""

    name = "instances"
    dtype = np.uint16
    columns = ("instances_path",)
    part = "object"
    marks = "pixels of objects"

    def parts(self, table: Table, data: DataSettings, survey: Survey) -> tuple[str, ...]:
        parts = named_parts(data) or (OBJECT,)
        if data.labels is not None and [*data.labels.values()] != [tuple(range(1, 65536))]:
            raise UserError(
                "data.labels: instances are of one kind, and every value is an object; name it, "
                f"'data.labels={{{parts[0]}: 1-65535}}'."
            )
        return parts

    def decode(
        self,
        source: ImageSource,
        contents: readers.Contents,
        image: Decoded,
        data: DataSettings,
        meant: Legend | None = None,
    ) -> Drawing:
        """Numbers (S, R, C) uint16 as in the file."""
        volume = readers.decode(Path(source.label_path), contents, True, image.volume)
        volume = lay_on(image.volume, volume, source)
        values, _ = geometry.orient(volume.array, image.volume.affine, image.axis)
        return Drawing(values, {} if data.labels else {1: OBJECT}, volume.remarks)

    def blank(self, image: np.ndarray, parts: int) -> np.ndarray:
        return np.zeros(image.shape, np.uint16)

    def looked_at(self, drawing: Drawing, native: np.ndarray, *, negative: bool) -> np.ndarray:
        """Of other than ``negative`` images the slices that hold an object."""
        there: np.ndarray = np.any(native, axis=(1, 2)) | negative
        return there

    def shows(self, native: np.ndarray) -> tuple[int, ...]:
        return (1,) if native.any() else ()

    def to_grid(self, native: np.ndarray, grid: Grid) -> np.ndarray:
        return grid.label(native)

    def cropped(self, native: np.ndarray, grid: Grid) -> float:
        total = np.count_nonzero(native)
        rows, columns = grid.axes
        inside = np.count_nonzero(native[:, rows.native, columns.native])
        return 1 - inside / total if total else 0.0

    def pixels(self, drawing: Drawing) -> np.ndarray:
        """All objects together: a number is one object's."""
        return (drawing.values > 0).astype(np.uint16)

    def amounts(self, native: np.ndarray, parts: int, spacing_mm: Sequence[float]) -> np.ndarray:
        return np.array([len(np.unique(native[native > 0]))])

    def draw(self, axes: Axes, label: np.ndarray, parts: Sequence[str]) -> None:
        """Every object in a colour."""
        shown = np.ma.masked_equal(label, 0) % 20
        axes.imshow(shown, cmap="tab20", alpha=0.5, interpolation="nearest")
