"""What points and boxes share: a table of things that lie somewhere in an image.

Coordinates in pixels count columns (x, to the right), rows (y, down) and, in a volume, slices (z)
of the file as it is stored, pixel centres at whole numbers; ``data.points_in=ras`` and ``lps`` are
mm in the patient, for images that say where they lie. They are laid out as the image is.
"""

from __future__ import annotations

import json
import os
from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from fedshift import UserError
from fedshift.sites import geometry
from fedshift.sites.findings import FileFault, Finding
from fedshift.sites.geometry import Grid
from fedshift.sites.image import Decoded
from fedshift.sites.labels.base import (
    Drawing,
    Form,
    Places,
    Survey,
    check_meant,
    padded,
    parts_by_name,
    stray,
)
from fedshift.sites.labels.columns import CORNERS, wide_names
from fedshift.sites.labels.meaning import LabelMapError
from fedshift.sites.labels.table import CLASS, NAME, PATH, LabelTable, Row, read_labels
from fedshift.sites.legend import Legend
from fedshift.sites.names import fold, meant
from fedshift.sites.readers import Contents
from fedshift.sites.settings import BACKGROUND, IGNORE, DataSettings, check_count
from fedshift.sites.types import ImageSource, Table

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def corners(table: LabelTable, row: Row) -> tuple[tuple[float, float], tuple[float, float]]:
    """x and y of the two corners of a row's box.

    Raises :class:`.findings.FileFault` where it has no area."""
    x1, y1, x2, y2 = table.required(row, CORNERS)
    if x2 <= x1 or y2 <= y1:
        said = ", ".join(row.cells[column] for column in CORNERS)
        raise FileFault(
            "box-empty",
            table.file,
            f"has a box without area on line {row.line} ({said})",
            "x2 must lie to the right of x1 and y2 below y1, or take the row out",
        )
    return (x1, y1), (x2, y2)


class Placed(Form):
    """Things by rows: slice by slice (S, N, k + 1) float32, k coordinates on the slice and the
    part's number; rows of nan fill up.

    A drawing's values are (n, k + 2): the slice, k coordinates, and the file's own number.
    """

    dtype = np.float32
    tabled = True
    says_parts = True
    coordinates: int
    naming: ClassVar[str] = CLASS
    """The column of a table that says what a row is."""

    @abstractmethod
    def names_in(self, table: LabelTable) -> tuple[str, ...]:
        """What a table of labels calls its things, in the order of its numbers (from 1).

        Raises :class:`fedshift.UserError` where it can mean two things, or is none of the form."""

    def table(self, file: str) -> LabelTable:
        """The table of labels ``file``."""
        return read_labels(file, ("x", "y", *CORNERS, CLASS, NAME))

    def in_table(self, table: Path, image: str, cells: Mapping[str, str]) -> str:
        labels = self.table(str(table))
        if not labels.shared:
            raise UserError(
                f"{table} has no column {PATH!r}, which says of each row whose image it is; add "
                f"it, or name a table an image in the column {self.columns[0]} of the manifest."
            )
        return str(table) if labels.of(image) else ""

    def check_joined(self, table: Table, data: DataSettings) -> Iterator[Finding]:
        listed = {os.path.realpath(i.path) for images in table.images.values() for i in images}
        for one in self.tables(table, strict=False):
            lost = [row for image, rows in one.rows.items() if image not in listed for row in rows]
            if one.shared and lost:
                yield stray(one.file, len(lost), lost[0].line)

    def parts(self, table: Table, data: DataSettings, survey: Survey) -> tuple[str, ...]:
        if (named := parts_by_name(data, self)) is not None:
            if IGNORE in (data.labels or {}):
                raise self.cannot_ignore(f"data.labels.{IGNORE}")
            return named
        found: dict[str, str] = {}
        for one in self.tables(table):
            for name in self.names_in(one):
                check_meant(name, self, str(one.file))
                if fold(name) == IGNORE:
                    raise self.cannot_ignore(str(one.file))
                if fold(name) == BACKGROUND:
                    continue
                if found.setdefault(fold(name), name) != name:
                    raise UserError(
                        f"{one.file} calls a {self.part} {name!r}, and elsewhere it is "
                        f"{found[fold(name)]!r}; spell it alike, or set data.labels."
                    )
        parts = tuple(found.values())
        check_count(parts, "the tables of labels")
        return parts

    def cannot_ignore(self, where: str) -> UserError:
        """The sentence of what is to be neither trained on nor scored."""
        return UserError(
            f"{where}: around {self.marks} to ignore nothing says how much of the image is not to "
            f"count; give them to {BACKGROUND} in data.labels, or take their rows out."
        )

    def tables(self, table: Table, *, strict: bool = True) -> Iterator[LabelTable]:
        """Every table of labels of a manifest that can be read, once.

        Where ``strict``, raises the first one's fault where none can."""
        fault: FileFault | None = None
        usable = 0
        paths = {image.label_path for images in table.images.values() for image in images}
        for path in sorted(paths - {""}):
            try:
                one = self.table(path)
            except FileFault as error:
                fault = fault or error
                continue
            usable += 1
            yield one
        if strict and not usable and fault is not None:
            raise fault

    def shared(self, source: ImageSource) -> bool:
        return self.table(source.label_path).shared

    def read(self, source: ImageSource) -> Contents:
        """The rows of the image alone: of a table for many, the others' do not matter."""
        rows = [
            [row.line, dict(row.cells)] for row in self.table(source.label_path).of(source.path)
        ]
        return [(Path(source.label_path), json.dumps(rows).encode())]

    def rows_of(self, drawing: Drawing, legend: Legend, source: ImageSource) -> np.ndarray:
        """The drawing's rows, whose last column is now the part; without what is in none."""
        classes = legend.classes(drawing.names)
        for number in np.unique(drawing.values[:, -1]).astype(int).tolist():
            if number not in classes:
                raise LabelMapError(
                    f"{source.path} has {self.told(source, [number], drawing.names)}, which is in "
                    "none of the federation's; give it to one, or to background, in data.labels."
                )
        values = drawing.values.copy()
        values[:, -1] = [classes[int(number)] for number in values[:, -1]]
        kept: np.ndarray = values[values[:, -1] != 0]
        return kept

    def classify(
        self, drawing: Drawing, legend: Legend, source: ImageSource, image: np.ndarray
    ) -> np.ndarray:
        rows = self.rows_of(drawing, legend, source)
        slices = [rows[rows[:, 0] == k, 1:] for k in range(len(image))]
        return padded(slices, self.coordinates + 1)

    def blank(self, image: np.ndarray, parts: int) -> np.ndarray:
        return np.full((len(image), parts, self.coordinates + 1), np.nan, np.float32)

    def looked_at(self, drawing: Drawing, native: np.ndarray, *, negative: bool) -> np.ndarray:
        """Of other than ``negative`` images the slices that hold something, also of what is in no
        part: they were looked at."""
        there = np.full(len(native), negative)
        there[drawing.values[:, 0].astype(int)] = True
        return there

    def shows(self, native: np.ndarray) -> tuple[int, ...]:
        there = np.isfinite(native[..., 0])
        return tuple(np.unique(native[there][:, -1]).astype(int).tolist())

    def only(self, native: np.ndarray, told: Sequence[int]) -> np.ndarray:
        kept = native.copy()
        kept[~np.isin(native[..., -1], [*told]), :-1] = np.nan
        return kept

    def called(self, table: LabelTable, row: Row, column: str, default: str = "") -> str:
        """What a row calls its thing; ``default`` in a table without the column."""
        if column not in table.columns:
            return default
        if not (text := meant(row.cells.get(column, ""))):
            raise FileFault(
                "no-name",
                table.file,
                f"has no name in the column {column!r} on line {row.line}",
                "fill it, or take the row out",
            )
        return text

    def coordinates_of(self, source: ImageSource) -> list[tuple[int, str, tuple[float, ...]]]:
        """The line, the name (empty where columns or nothing say it) and the coordinates of each
        row for an image, as they are written; those of its points by name are one."""
        table = self.table(source.label_path)
        wide = [f"{name}_{axis}" for name in wide_names(table) for axis in "xyz"]
        columns = [name for name in table.columns if name in ("x", "y", "z", *CORNERS, *wide)]
        return [
            (
                row.line,
                meant(row.cells.get(self.naming, "")),
                tuple(value for name in columns if (value := table.number(row, name)) is not None),
            )
            for row in table.of(source.path)
        ]

    def drawing(self, table: LabelTable, values: np.ndarray, called: Sequence[str]) -> Drawing:
        """The slices and coordinates (n, k + 1) of things and what they are called."""
        names = self.names_in(table)
        numbers = [names.index(name) + 1 for name in called]
        used = {number: names[number - 1] for number in sorted({*numbers})}
        return Drawing(np.c_[values, numbers].reshape(-1, self.coordinates + 2), used)

    def counts(self, drawing: Drawing) -> dict[int, int]:
        numbers, counts = np.unique(drawing.values[:, -1].astype(int), return_counts=True)
        return dict(zip(numbers.tolist(), counts.tolist(), strict=True))

    def places(self, drawing: Drawing) -> Places:
        values = drawing.values
        return values[:, 0], values[:, 2], values[:, 1]

    def told(self, source: ImageSource, values: Sequence[int], names: Mapping[int, str]) -> str:
        """The first by name, with its line."""
        table = self.table(source.label_path)
        rows, name = table.of(source.path), names[values[0]]
        # Columns that carry the names are of one row.
        own = [row for row in rows if meant(row.cells.get(self.naming, "")) == name] or rows
        more = f" and {len(values) - 1} more" if len(values) > 1 else ""
        return f"the {self.part} {name!r} (line {own[0].line} of {table.file}){more}"

    def amounts(self, native: np.ndarray, parts: int, spacing_mm: Sequence[float]) -> np.ndarray:
        numbers = native[np.isfinite(native[..., 0])][:, -1].astype(int)
        return np.bincount(numbers, minlength=parts + 1)[1:]


Found = tuple[Row, str, list[float]]
"""A row, the name of its point, and x, y, z (nan where it is not given)."""


class Marks(Placed):
    """Points: x, y and the part's number."""

    coordinates = 2

    @abstractmethod
    def rows_in(self, table: LabelTable, source: ImageSource) -> list[Found]:
        """The points of an image in a table."""

    def decode(
        self,
        source: ImageSource,
        contents: Contents,
        image: Decoded,
        data: DataSettings,
        meant: Legend | None = None,
    ) -> Drawing:
        """Slice, x, y and the file's number of each point (n, 4)."""
        table = self.table(source.label_path)
        found = self.rows_in(table, source)
        xyz = np.array([place for _, _, place in found]).reshape(-1, 3)
        said = [
            f"a point at {', '.join(f'{value:g}' for value in place if np.isfinite(value))}"
            for place in xyz
        ]
        laid = lay_out(xyz, [row for row, _, _ in found], said, image, source, data, table.file)
        return self.drawing(table, laid[:, [0, 2, 1]], [name for _, name, _ in found])

    def to_grid(self, native: np.ndarray, grid: Grid) -> np.ndarray:
        if grid.identity:
            return native
        moved = native.copy()
        moved[..., :2] = grid.points_to_grid(native[..., :2])
        return moved

    def cropped(self, native: np.ndarray, grid: Grid) -> float:
        places = grid.points_to_grid(native[np.isfinite(native[..., 0])][:, :2])
        outside = ((places < -0.5) | (places > grid.size - 0.5)).any(axis=1)
        return float(outside.mean()) if len(places) else 0.0

    def draw(self, axes: Axes, label: np.ndarray, parts: Sequence[str]) -> None:
        """A mark a point, in a colour a part."""
        for k in range(1, len(parts) + 1):
            x, y = label[(label[:, 2] == k) & np.isfinite(label[:, 0]), :2].T
            axes.scatter(x, y, s=16, marker="+", linewidths=0.8, color=f"C{k - 1}")


def place_of(table: LabelTable, row: Row, prefix: str = "") -> list[float] | None:
    """x, y and z of a row; None where it has neither x nor y."""
    columns = (f"{prefix}x", f"{prefix}y")
    if [table.number(row, column) for column in columns] == [None, None]:
        return None
    return [*table.required(row, columns), depth(table, row, prefix)]


SLACK = 1.0
"""How many pixels an edge of a box may lie outside the image: it is moved onto the border."""


def edges(
    table: LabelTable, source: ImageSource, image: Decoded, data: DataSettings
) -> tuple[np.ndarray, np.ndarray]:
    """The lowest and the highest slice, row and column (n, 3) of each box of ``source``, pixel
    centres at whole numbers.

    Raises:
        FileFault: a box has no area, lies outside its image or across slices, or nothing says on
            which slice it lies.
    """
    rows = table.of(source.path)
    found = np.array([corners(table, row) for row in rows]).reshape(-1, 2, 2)
    if data.points_in == "pixel":
        # Edges are counted from the image's corner, points from the first pixel's centre.
        found = _inside(found - 0.5, image)
    z = np.array([depth(table, row) for row in rows]).reshape(-1, 1)
    said = [f"a box at {', '.join(row.cells[column] for column in CORNERS)}" for row in rows]
    first, last = (
        lay_out(np.c_[found[:, k], z], rows, said, image, source, data, table.file) for k in (0, 1)
    )
    across = first[:, 0] != last[:, 0]
    if across.any():
        raise FileFault(
            "box-across",
            table.file,
            f"has a box on line {rows[int(np.argmax(across))].line} that lies across the "
            f"slices of {source.path}",
            "give boxes within slices, or set data.slice_axis to the plane they were drawn in",
        )
    return np.minimum(first, last), np.maximum(first, last)


def _inside(found: np.ndarray, image: Decoded) -> np.ndarray:
    """Edges (n, 2, 2) that miss the image by little, moved onto its border; not those of a box of
    which then nothing would be left."""
    columns, rows = image.volume.array.shape[:2]
    near = found.clip(-0.5, np.array([columns, rows]) - 0.5)
    moved = np.where(np.abs(near - found) <= SLACK, near, found)
    left = np.all(moved[:, 1] > moved[:, 0], axis=1)
    return np.where(left.reshape(-1, 1, 1), moved, found)


def lay_out(
    xyz: np.ndarray,
    lines: Sequence[Row],
    said: Sequence[str],
    image: Decoded,
    source: ImageSource,
    data: DataSettings,
    file: Path,
) -> np.ndarray:
    """Coordinates (n, 3) of a table's rows ``lines``, z nan where it is not given, as slice, row
    and column of ``image`` (n, 3); the slice is a whole number. ``said`` are the rows in words.

    Raises:
        FileFault: nothing says on which slice one lies, or it lies outside the image.
    """
    volume = image.volume
    shape = volume.array.shape
    if data.points_in == "pixel":
        if volume.turned != 1:
            raise FileFault(
                "turned-label",
                source.path,
                "is turned upright by its orientation tag, and pixels may be counted before or "
                "after",
                "save the image upright and count its pixels",
            )
        voxels = xyz
    elif volume.affine is None:
        raise FileFault(
            "image-without-place",
            source.path,
            "does not say where it lies, and its label is in mm of the patient",
            "give a format that says so, or pixels with data.points_in=pixel",
        )
    else:
        mm = xyz * (np.array([-1.0, -1.0, 1.0]) if data.points_in == "lps" else 1.0)
        voxels = (np.c_[mm, np.ones(len(mm))] @ np.linalg.inv(volume.affine).T)[:, :3]
    flat = np.isnan(xyz[:, 2])
    if flat.any() and (shape[2] > 1 or data.points_in != "pixel"):
        raise FileFault(
            "point-without-slice",
            file,
            f"has no z on line {lines[int(np.argmax(flat))].line}, and {source.path} is a volume",
            "fill the column z: the slice, counted from 0, or mm where x and y are mm",
        )
    voxels = np.where(flat[:, None] & (np.arange(3) == 2), 0.0, voxels)
    outside = ((voxels < -0.5) | (voxels > np.array(shape) - 0.5)).any(axis=1)
    if outside.any():
        first = int(np.argmax(outside))
        raise FileFault(
            "point-outside",
            file,
            f"has {said[first]} on line {lines[first].line}, outside {source.path}, which has "
            f"{' x '.join(map(str, shape if shape[2] > 1 else shape[:2]))} pixels",
            "mend it: x counts columns and y rows, from 0 (data.points_in says of mm)",
        )
    laid = geometry.orient_points(voxels, shape, volume.affine, image.axis)
    laid[:, 0] = np.rint(laid[:, 0]).clip(0, len(image.image) - 1)
    return laid


def depth(table: LabelTable, row: Row, prefix: str = "") -> float:
    """The slice (or mm) of a row, nan where it is not given."""
    for column in (f"{prefix}z", "z"):
        if (z := table.number(row, column)) is not None:
            return z
    return float("nan")
