"""Boxes around things of some classes, any number a slice.

A label is (S, N, 5) float32: x1, y1, x2, y2 and the part's number; rows of nan fill up. The table
counts edges from the image's upper left corner (the whole image is 0, 0, columns, rows); the label
counts as points do, pixel centres at whole numbers, so that the whole image is from -0.5.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from fedshift.sites.geometry import Grid
from fedshift.sites.image import Decoded
from fedshift.sites.labels.base import Drawing, Places
from fedshift.sites.labels.columns import CORNERS, check_sizes, classes_in
from fedshift.sites.labels.placed import Placed, edges
from fedshift.sites.labels.table import CLASS, LabelTable, lacks
from fedshift.sites.legend import Legend
from fedshift.sites.readers import Contents
from fedshift.sites.settings import DataSettings
from fedshift.sites.types import ImageSource

if TYPE_CHECKING:
    from matplotlib.axes import Axes


class Boxes(Placed):
    """Boxes with classes."""

    name = "boxes"
    columns = ("boxes_path",)
    part = "class"
    marks = "boxes"
    sliced = True
    coordinates = 4

    def names_in(self, table: LabelTable) -> tuple[str, ...]:
        if not table.columns:  # As a list of nothing.
            return ()
        if not {*CORNERS} <= {*table.columns}:
            check_sizes(table)
            raise lacks(table, CORNERS[0], "boxes (columns x1, y1, x2 and y2)")
        return classes_in(table, "box")

    def decode(
        self,
        source: ImageSource,
        contents: Contents,
        image: Decoded,
        data: DataSettings,
        meant: Legend | None = None,
    ) -> Drawing:
        """Slice, edges and the file's number of each box (n, 6)."""
        table = self.table(source.label_path)
        low, high = edges(table, source, image, data)
        called = [self.called(table, row, CLASS, "box") for row in table.of(source.path)]
        return self.drawing(table, np.c_[low[:, 0], low[:, [2, 1]], high[:, [2, 1]]], called)

    def places(self, drawing: Drawing) -> Places:
        values = drawing.values
        slices = np.r_[values[:, 0], values[:, 0]]
        # The outermost pixels' centres lie half a pixel inside the edges.
        rows = np.r_[values[:, 2] + 0.5, values[:, 4] - 0.5]
        return slices, rows, np.r_[values[:, 1] + 0.5, values[:, 3] - 0.5]

    def to_grid(self, native: np.ndarray, grid: Grid) -> np.ndarray:
        if grid.identity:
            return native
        moved = native.copy()
        corners = native[..., :4].reshape(*native.shape[:-1], 2, 2)
        moved[..., :4] = grid.points_to_grid(corners).reshape(*native.shape[:-1], 4)
        return moved

    def cropped(self, native: np.ndarray, grid: Grid) -> float:
        """The share of the boxes' area."""
        corners = native[np.isfinite(native[..., 0])][:, :4].reshape(-1, 2, 2)
        corners = grid.points_to_grid(corners)
        area = np.prod(corners[:, 1] - corners[:, 0], axis=1).sum()
        seen = corners.clip(-0.5, grid.size - 0.5)
        return float(1 - np.prod(seen[:, 1] - seen[:, 0], axis=1).sum() / area) if area else 0.0

    def draw(self, axes: Axes, label: np.ndarray, parts: Sequence[str]) -> None:
        """A frame a box, in a colour a class."""
        from matplotlib.patches import Rectangle

        for x1, y1, x2, y2, k in label[np.isfinite(label[:, 0])]:
            color = f"C{int(k) - 1}"
            axes.add_patch(Rectangle((x1, y1), x2 - x1, y2 - y1, fill=False, edgecolor=color))
