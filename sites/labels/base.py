"""What a form of label is: a mask, points, boxes, ...; a module of this package each.

A label takes the way of its image. :meth:`Form.decode` lays it out as the image is laid out, in
the image's own geometry (slices, and in them x along the columns, y down the rows, pixel centres at
whole numbers); :meth:`Form.classify` brings the names or values of its file to the federation's
parts, numbered from 1; :meth:`Form.to_grid` brings it onto the network's grid, as resampling and
cropping do with the image. Every label is an array whose first axis is the slice, so that one file
a form holds a site's labels and blocks of slices are cut as the image's are. Where the number of
things in a slice varies, rows of nan fill it up (:func:`padded`).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from fedshift import UserError
from fedshift.sites import readers
from fedshift.sites.facts import Surveyed
from fedshift.sites.findings import Finding, Remark, number_of
from fedshift.sites.geometry import Grid
from fedshift.sites.image import Decoded
from fedshift.sites.labels.meaning import called
from fedshift.sites.legend import Legend
from fedshift.sites.names import fold, meant
from fedshift.sites.readers import Contents
from fedshift.sites.settings import RESERVED, DataSettings
from fedshift.sites.types import ImageSource, SiteSpec, Table

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Survey = Callable[[SiteSpec, DataSettings], tuple[Surveyed, ...]]
"""Looks into a site's files (:func:`.survey.survey`)."""
Places = tuple[np.ndarray, np.ndarray, np.ndarray]
"""Slices, rows and columns of what a label marks, as the image is laid out."""


@dataclass(frozen=True)
class Own:
    """What a label file says of itself: the names that it gives to values, and which it uses."""

    names: Mapping[int, str]
    values: Collection[int]


@dataclass(frozen=True)
class Drawing:
    """A label as its file has it, laid out as its image, the parts still by the file's own numbers.

    ``names`` are what the file calls its numbers, ``values`` are the form's own array.
    """

    values: np.ndarray
    names: Mapping[int, str] = field(default_factory=dict)
    remarks: tuple[Remark, ...] = ()


class Form(ABC):
    """One form of label. Arrays are slice by slice, (S, ...) of ``dtype``."""

    name: ClassVar[str]
    dtype: ClassVar[type]
    columns: ClassVar[tuple[str, ...]]
    """The manifest's columns that can name the label's file; the first that is filled does."""
    part: ClassVar[str]
    """What a part is called in a sentence."""
    marks: ClassVar[str]
    """What a label holds, in a sentence."""
    files: ClassVar[bool] = True
    """Whether the column names a file, and is not the label itself."""
    tabled: ClassVar[bool] = False
    """Whether one table, ``data.label_table``, can hold the labels of many images."""
    needed: ClassVar[bool] = True
    """Whether a site without a label cannot train."""
    says_parts: ClassVar[bool] = False
    """Whether its labels say which parts there are, where ``data.labels`` does not."""
    by_value: ClassVar[bool] = False
    """Whether its files may tell parts apart by numbers alone, whose meaning is to be said."""
    unit: ClassVar[str] = ""
    """In what is told how much a label holds; empty for numbers of things."""
    sliced: ClassVar[bool] = False
    """Whether it can only be read in the plane of the slices in which it was drawn."""
    one_each: ClassVar[bool] = False
    """Whether an image has one of each part, on one of its slices."""
    one_size: ClassVar[bool] = False
    """Whether all labels of a federation must hold as much (:meth:`counts`)."""
    together: ClassVar[bool] = True
    """Whether an image can hold several parts, so that one of them may not have been looked for."""

    # From the table to the federation.

    def named(self, cells: Mapping[str, str]) -> str:
        """What a row of the manifest, its ``cells`` by column, names as the label; empty where it
        names none."""
        return next((cells[name] for name in self.columns if meant(cells[name])), "")

    def in_table(self, table: Path, image: str, cells: Mapping[str, str]) -> str:
        """The file of the label that ``data.label_table`` gives the ``image`` of a row, or nothing.

        Raises :class:`fedshift.UserError` where that is no table of such labels."""
        raise NotImplementedError

    def check_joined(self, table: Table, data: DataSettings) -> Iterator[Finding]:
        """What does not fit between the manifest and the tables of labels that it is joined to."""
        return iter(())

    def parts(self, table: Table, data: DataSettings, survey: Survey) -> tuple[str, ...]:
        """The names of what the labels of a table tell apart; ``survey`` looks into files.

        Raises :class:`fedshift.UserError` where nothing says so, or it can mean two things."""
        if data.labels is not None:
            raise UserError(
                f"data.labels is no setting of labels of the form {self.name}, which have no "
                "parts; take it out."
            )
        return ()

    def own(self, site: SiteSpec, data: DataSettings, survey: Survey) -> list[Own | None]:
        """What the label of each image says itself of what it tells of; None where it cannot be
        used, or is none."""
        return [Own({}, ()) if image.labelled else None for image in site.images]

    def listed(
        self, source: ImageSource, parts: Sequence[str], data: DataSettings, own: Own | None
    ) -> tuple[str, ...] | None:
        """Which of ``parts`` a label tells of by itself; None for all."""
        return None

    def shared(self, source: ImageSource) -> bool:
        """Whether the file of the label is meant to serve several images."""
        return False

    # One image.

    def read(self, source: ImageSource) -> Contents:
        """The bytes of the label of ``source``, by which it is known again. Raises
        :class:`.findings.FileFault`."""
        return readers.read(Path(source.label_path))

    def drawn(self, source: ImageSource) -> bool:
        """Whether the label is a drawing of which only what is meant may not overlap."""
        return False

    @abstractmethod
    def decode(
        self,
        source: ImageSource,
        contents: Contents,
        image: Decoded,
        data: DataSettings,
        meant: Legend | None = None,
    ) -> Drawing:
        """The label of ``source``, laid out as ``image``. ``contents`` are the bytes of its file,
        ``meant`` says which parts of it are (None: all). Raises :class:`.findings.FileFault`."""

    def classify(
        self, drawing: Drawing, legend: Legend, source: ImageSource, image: np.ndarray
    ) -> np.ndarray:
        """The label of ``source`` in the geometry of its ``image`` (S, R, C), its parts numbered as
        the federation's. Raises :class:`.meaning.LabelMapError` for what is in no part."""
        return drawing.values

    def blank(self, image: np.ndarray, parts: int) -> np.ndarray:
        """The label of ``image`` (S, R, C) in which somebody looked and found none of ``parts``."""
        return np.zeros((len(image), 0), self.dtype)

    def looked_at(self, drawing: Drawing, native: np.ndarray, *, negative: bool) -> np.ndarray:
        """Which slices (S,) the label tells of; of a ``negative`` image all."""
        return np.ones(len(native), bool)

    def shows(self, native: np.ndarray) -> tuple[int, ...]:
        """The parts, by number, that a label holds."""
        return ()

    def only(self, native: np.ndarray, told: Sequence[int]) -> np.ndarray:
        """``native`` without the parts that are not ``told`` of."""
        return native

    def normalised(self, native: np.ndarray, grid: Grid, data: DataSettings) -> np.ndarray:
        """``native`` in the units in which it is learnt."""
        return native

    def to_grid(self, native: np.ndarray, grid: Grid) -> np.ndarray:
        """``native`` on the network's grid; itself where nothing changes."""
        return native

    def cropped(self, native: np.ndarray, grid: Grid) -> float:
        """The fraction of the label that lies outside the network's grid."""
        return 0.0

    # What the survey keeps of it, in numbers.

    def pixels(self, drawing: Drawing) -> np.ndarray | None:
        """The file's numbers pixel by pixel (S, R, C); None where the label has no area."""
        return None

    def counts(self, drawing: Drawing) -> dict[int, int]:
        """How much of each of the file's numbers the label holds: pixels, or things; a label that
        has none is one."""
        if (pixels := self.pixels(drawing)) is None:
            return {1: 1}
        counts = np.bincount(pixels.ravel())
        return {int(value): int(counts[value]) for value in np.flatnonzero(counts)}

    def places(self, drawing: Drawing) -> Places | None:
        """Where the label marks the image; None where it is of the whole."""
        if (pixels := self.pixels(drawing)) is None:
            return None
        slices, rows, columns = np.nonzero(pixels)
        return slices, rows, columns

    # For readers.

    def told(self, source: ImageSource, values: Sequence[int], names: Mapping[int, str]) -> str:
        """Some ``values`` of the label of ``source`` in a sentence; ``names`` are the file's."""
        some = ", ".join(called(value, names) for value in values[:3])
        more = ", ..." if len(values) > 3 else ""
        return f"the value{'s' if len(values) > 1 else ''} {some}{more}"

    def filled(self, columns: Mapping[str, str]) -> str:
        """What to do so that images have a label; ``columns`` are the manifest's by ours."""
        named = " or ".join(columns.get(name, name) for name in self.columns)
        table = ", or give their table as data.label_table" if self.tabled else ""
        return f"fill the column {named}{table}"

    def emptied(self, data: DataSettings) -> str:
        """What to do so that an image has no label."""
        if data.label_table is not None:
            return "take its rows out of data.label_table"
        return f"empty its cell {' or '.join(data.columns.get(n, n) for n in self.columns)}"

    def amounts(self, native: np.ndarray, parts: int, spacing_mm: Sequence[float]) -> np.ndarray:
        """How much of each of ``parts`` a case's label holds, (parts,), in :attr:`unit`."""
        return np.zeros(0)

    @abstractmethod
    def draw(self, axes: Axes, label: np.ndarray, parts: Sequence[str]) -> None:
        """Draw the label of one slice on the network's grid over its image on ``axes``, part ``k``
        in the colour ``C{k - 1}``."""


def named_parts(data: DataSettings) -> tuple[str, ...] | None:
    """The parts that ``data.labels`` names; None where it is not set."""
    if data.labels is None:
        return None
    return tuple(name for name in data.labels if name not in RESERVED)


def parts_by_name(data: DataSettings, form: Form) -> tuple[str, ...] | None:
    """The parts that ``data.labels`` names, of a ``form`` whose files hold names; None where it is
    not set.

    Raises :class:`fedshift.UserError` for a number: a file's names have no order to count by."""
    for name, given in (data.labels or {}).items():
        for one in given:
            if isinstance(one, int):
                raise UserError(
                    f"data.labels.{name} is the number {one}, and labels of the form {form.name} "
                    f"have names: write those that they have, 'data.labels={{{name}: [NAME, "
                    f'...]}}\' (a name that is a number in quotation marks, "{one}"), or leave '
                    "data.labels out to keep them."
                )
    return named_parts(data)


def check_meant(name: str, form: Form, where: str) -> None:
    """Raise :class:`fedshift.UserError` for a ``name`` of a part of ``form`` that can also say that
    there is none; ``data.labels`` settles it."""
    if fold(name) in ("none", "null", "na"):
        raise UserError(
            f"{where} holds the {form.part} {name!r}, which can be one or say that there is none: "
            "empty its cells where there is none, or name it among the others in data.labels."
        )


def kept_parts(parts: Sequence[str], told: Collection[int]) -> tuple[str, ...] | None:
    """The names among ``parts`` whose numbers are ``told``; None for all."""
    kept = tuple(name for k, name in enumerate(parts, 1) if k in told)
    return None if len(kept) == len(parts) else kept


def stray(file: Path, rows: int, line: int) -> Finding:
    """What is told of ``rows`` of a table of labels, the first on ``line``, that belong to no image
    of the manifest."""
    return Finding(
        "warning",
        "label-without-image",
        "",
        str(file),
        f"has {number_of(rows, 'row', 'rows')} for images that the manifest does not list, "
        f"the first on line {line}",
        "add the images to the manifest, or take the rows out",
    )


def padded(slices: Sequence[np.ndarray], width: int, least: int = 0) -> np.ndarray:
    """The rows (n, width) of each slice as one array (S, N, width) float32, N the largest n but
    at least ``least``; rows of nan fill it up."""
    most = max([least, *(len(rows) for rows in slices)])
    out = np.full((len(slices), most, width), np.nan, np.float32)
    for place, rows in zip(out, slices, strict=True):
        place[: len(rows)] = rows
    return out
