"""Points: any number of each class in an image.

A label is (S, N, 3) float32: x, y and the class's number; rows of nan fill up. A table of boxes
gives their centres.
"""

from __future__ import annotations

from functools import partial

from fedshift import UserError
from fedshift.sites.labels.placed import (
    CORNERS,
    Found,
    Marks,
    classes_in,
    corners,
    depth,
    is_flat,
    wide_names,
)
from fedshift.sites.labels.table import CLASS, NAME, LabelTable, Row, lacks
from fedshift.sites.settings import DataSettings
from fedshift.sites.types import ImageSource


class Points(Marks):
    """Points of some classes, a row each."""

    name = "points"
    columns = ("points_path", "boxes_path")
    part = "class"
    marks = "points"

    def names_in(self, table: LabelTable) -> tuple[str, ...]:
        if is_flat(table) and {NAME, CLASS} <= {*table.columns}:
            raise UserError(
                f"{table.file} has the columns name and class: one point of each name, or any "
                "number of each class? Take one of them out."
            )
        if wide_names(table) or (is_flat(table) and NAME in table.columns):
            raise UserError(
                f"{table.file} has one point of each name an image: take a task that learns from "
                "landmarks, or give the names in a column class, a row a point."
            )
        if not is_flat(table) and not {*CORNERS} <= {*table.columns}:
            raise lacks(table, "x", "points of any number (columns x and y, and class)")
        return classes_in(table, "point")

    def rows_in(self, table: LabelTable, source: ImageSource, data: DataSettings) -> list[Found]:
        # Edges are counted from the image's corner, points from the first pixel's centre.
        shift = 0.5 if data.points_in == "pixel" else 0.0
        place = _place if is_flat(table) else partial(_centre, shift=shift)
        return [
            (row, self.called(table, row, CLASS, "point"), place(table, row))
            for row in table.of(source.path)
        ]


def _place(table: LabelTable, row: Row) -> list[float]:
    return [*table.required(row, ("x", "y")), depth(table, row)]


def _centre(table: LabelTable, row: Row, shift: float) -> list[float]:
    (x1, y1), (x2, y2) = corners(table, row)
    return [(x1 + x2) / 2 - shift, (y1 + y2) / 2 - shift, depth(table, row)]
