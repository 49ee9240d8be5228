"""Landmarks: points with names, of which an image has one each.

A label is (S, N, 3) float32: x, y and the landmark's number. Row n is that of landmark n + 1, with
x and y nan where it is not on the slice.

A landmark without coordinates was not looked for, unless ``annotates`` says so: then it was looked
for and is not there.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from fedshift import UserError
from fedshift.sites.findings import FileFault
from fedshift.sites.labels.base import Drawing, Own, Survey, kept_parts
from fedshift.sites.labels.columns import (
    check_pairs,
    check_sizes,
    image_names,
    is_flat,
    wide_names,
)
from fedshift.sites.labels.meaning import LabelMapError, legend_of
from fedshift.sites.labels.placed import Found, Marks, place_of
from fedshift.sites.labels.table import NAME, LabelTable, Row, lacks
from fedshift.sites.legend import Legend
from fedshift.sites.names import fold
from fedshift.sites.settings import DataSettings
from fedshift.sites.types import IGNORED, ImageSource, SiteSpec


class Landmarks(Marks):
    """One point of each name: columns ``NAME_x`` and ``NAME_y``, or rows with a ``name``."""

    name = "landmarks"
    columns = ("points_path",)
    part = "landmark"
    marks = "landmarks"
    naming = NAME
    one_each = True

    def names_in(self, table: LabelTable) -> tuple[str, ...]:
        if wide := _wide(table):
            return wide
        return tuple(name for name in table.names[NAME] if name)

    def own(self, site: SiteSpec, data: DataSettings, survey: Survey) -> list[Own | None]:
        found: list[Own | None] = []
        for source in site.images:
            try:
                table = self.table(source.label_path) if source.labelled else None
                rows = self.rows_in(table, source) if table is not None else []
            except FileFault:  # which the survey tells
                found.append(None)
                continue
            found.append(Own(dict(enumerate({name: 0 for _, name, _ in rows}, 1)), ()))
        return found

    def listed(
        self, source: ImageSource, parts: Sequence[str], data: DataSettings, own: Own | None
    ) -> tuple[str, ...] | None:
        """Those that have coordinates."""
        if own is None or not own.names:
            return None
        classes = legend_of(source, parts, data, "").classes(own.names)
        return kept_parts(parts, {classes[number] for number in own.names if number in classes})

    def classify(
        self, drawing: Drawing, legend: Legend, source: ImageSource, image: np.ndarray
    ) -> np.ndarray:
        native = self.blank(image, max(k for k in legend.names.values() if k != IGNORED))
        for k, *place, part in self.rows_of(drawing, legend, source).tolist():
            if np.isfinite(native[:, int(part) - 1, 0]).any():
                raise LabelMapError(
                    f"data.labels gives two points of {source.label_path} to one landmark; of a "
                    "landmark an image has one."
                )
            native[int(k), int(part) - 1, :2] = place
        return native

    def blank(self, image: np.ndarray, parts: int) -> np.ndarray:
        native = super().blank(image, parts)
        native[..., 2] = np.arange(1, parts + 1)
        return native

    def looked_at(self, drawing: Drawing, native: np.ndarray, *, negative: bool) -> np.ndarray:
        """All slices of an image that has one: it is on no other."""
        there = super().looked_at(drawing, native, negative=negative)
        return there | there.any()

    def rows_in(self, table: LabelTable, source: ImageSource) -> list[Found]:
        """Those that have coordinates."""
        rows = table.of(source.path)
        if wide := _wide(table):
            if len(rows) > 1:
                raise _twice(table, rows[1], source, "its points")
            every = [(row, name, place_of(table, row, f"{name}_")) for row in rows for name in wide]
        else:
            every = [
                (row, self.called(table, row, self.naming), place_of(table, row)) for row in rows
            ]
        seen: set[str] = set()
        for row, name, _ in every:
            if name in seen:
                raise _twice(table, row, source, repr(name))
            seen.add(name)
        return [(row, name, place) for row, name, place in every if place is not None]


def _wide(table: LabelTable) -> tuple[str, ...]:
    """The names of a table with columns ``NAME_x`` and ``NAME_y``; none of one with a row a point.

    Raises :class:`fedshift.UserError` where it is both or neither."""
    if not table.columns:  # As a list of nothing.
        return ()
    names = wide_names(table)
    check_sizes(table)
    if not is_flat(table) and (doubtful := image_names(table)):
        raise UserError(
            f"{table.file} has the columns {doubtful[0]}_x and {doubtful[0]}_y: a landmark, or "
            "how the image lies? Rename them if it is one, or else take them out."
        )
    if not is_flat(table):
        check_pairs(table)
    if names and is_flat(table):
        raise UserError(
            f"{table.file} has the columns {names[0]}_x and x: points by name or a point a row? "
            "Take one kind of columns out."
        )
    if not names and is_flat(table) and NAME not in table.columns:
        raise UserError(
            f"{table.file} has any number of points an image, and landmarks have one of each name: "
            "take a task that learns from points, or give the names in a column name."
        )
    if not names and not is_flat(table):
        raise lacks(table, "x", "landmarks (columns NAME_x and NAME_y, or x, y and name)")
    known: set[str] = set()
    for name in names:
        if fold(name) in known:
            raise UserError(f"{table.file} has the landmark {name!r} twice; rename one of them.")
        known.add(fold(name))
    return names


def _twice(table: LabelTable, row: Row, source: ImageSource, what: str) -> FileFault:
    return FileFault(
        "point-twice",
        table.file,
        f"gives {what} of {source.path} a second time on line {row.line}",
        "keep one of the two; any number of points of one class have a column class in place of "
        "name",
    )
