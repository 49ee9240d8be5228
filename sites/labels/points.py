"""Points: any number of each class in an image.

A label is (S, N, 3) float32: x, y and the class's number; rows of nan fill up. A table of boxes
gives their centres.
"""

from __future__ import annotations

from fedshift import UserError
from fedshift.sites.image import Decoded
from fedshift.sites.labels.base import Drawing
from fedshift.sites.labels.columns import CORNERS, check_sizes, classes_in, is_flat, wide_names
from fedshift.sites.labels.placed import Found, Marks, depth, edges
from fedshift.sites.labels.table import CLASS, NAME, LabelTable, lacks
from fedshift.sites.legend import Legend
from fedshift.sites.readers import Contents
from fedshift.sites.settings import DataSettings
from fedshift.sites.types import ImageSource


class Points(Marks):
    """Points of some classes, a row each."""

    name = "points"
    columns = ("points_path", "boxes_path")
    part = "class"
    marks = "points"

    def names_in(self, table: LabelTable) -> tuple[str, ...]:
        if not table.columns:  # As a list of nothing.
            return ()
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
        check_sizes(table)
        if not is_flat(table) and not {*CORNERS} <= {*table.columns}:
            raise lacks(table, "x", "points of any number (columns x and y, and class)")
        return classes_in(table, "point")

    def rows_in(self, table: LabelTable, source: ImageSource) -> list[Found]:
        self.names_in(table)
        return [
            (
                row,
                self.called(table, row, CLASS, "point"),
                [*table.required(row, ("x", "y")), depth(table, row)],
            )
            for row in table.of(source.path)
        ]

    def decode(
        self,
        source: ImageSource,
        contents: Contents,
        image: Decoded,
        data: DataSettings,
        meant: Legend | None = None,
    ) -> Drawing:
        table = self.table(source.label_path)
        if not {*CORNERS} <= {*table.columns} or is_flat(table):
            return super().decode(source, contents, image, data, meant)
        low, high = edges(table, source, image, data)
        called = [self.called(table, row, CLASS, "point") for row in table.of(source.path)]
        return self.drawing(table, ((low + high) / 2)[:, [0, 2, 1]], called)
