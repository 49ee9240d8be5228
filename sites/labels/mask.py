"""Masks: a class a pixel, as files of label values, DICOM segmentations or structure sets."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from fedshift import UserError
from fedshift.sites import geometry, readers
from fedshift.sites.alignment import lay_on
from fedshift.sites.facts import Trouble
from fedshift.sites.geometry import Grid
from fedshift.sites.image import Decoded
from fedshift.sites.labels.base import Drawing, Form, Own, Survey, kept_parts, named_parts
from fedshift.sites.labels.meaning import (
    LabelMapError,
    called,
    legend_of,
    parse_label_values,
)
from fedshift.sites.legend import Legend
from fedshift.sites.names import fold, tidy
from fedshift.sites.settings import RESERVED, DataSettings, check_count
from fedshift.sites.types import IGNORED, ImageSource, SiteSpec, Table

if TYPE_CHECKING:
    from matplotlib.axes import Axes


class Mask(Form):
    """Class indices (S, R, C), 0 the background and :data:`IGNORED` neither trained nor scored."""

    name = "mask"
    dtype = np.uint8
    columns = ("label_path",)
    part = "structure"
    marks = "labelled pixels"
    unit = "mL"
    says_parts = True
    by_value = True

    def parts(self, table: Table, data: DataSettings, survey: Survey) -> tuple[str, ...]:
        """The names of ``data.labels``, of the table, or ``label VALUE`` of the files."""
        for name, given in (data.labels or {}).items():
            for one in given:
                if isinstance(one, str) and re.fullmatch(r"[\d\s-]+", one):
                    raise UserError(
                        f"data.labels.{name} is the text {one!r}, and a mask has whole numbers up "
                        "to 65535, or the names that files give them: take it out of its quotation "
                        "marks, or mend it."
                    )
        if (named := named_parts(data)) is not None:
            return named
        labelled = [i for images in table.images.values() for i in images if i.label_path]
        if table.label_values:
            names: dict[str, list[str]] = {}
            for image in labelled:
                text = table.label_values.get(image.label_path)
                if text is None:
                    raise UserError(
                        f"{image.label_path} has no label_values in the manifest, others have; "
                        "fill the cell or set data.labels."
                    )
                names[image.label_path] = list(parse_label_values(text, image.path).values())
            structures, origin = structures_of(names), "the column label_values"
        else:
            structures = _from_files(table, data, survey)
            origin = "the values of the label files"
        check_count(structures, origin)
        return structures

    def own(self, site: SiteSpec, data: DataSettings, survey: Survey) -> list[Own | None]:
        """Files are opened only where a format that can bring names is among them."""
        found = super().own(site, data, survey)
        files = [Path(image.label_path) for image in site.images if image.label_path]
        if any(readers.may_name(file) for file in files):
            for number, one in enumerate(survey(site, data)):
                if one.facts is None or one.left_out:
                    found[number] = None
                elif one.facts.values is not None:
                    drawn = [value for value in one.facts.values if value > 0]
                    found[number] = Own(one.facts.names, drawn)
        return found

    def listed(
        self, source: ImageSource, parts: Sequence[str], data: DataSettings, own: Own | None
    ) -> tuple[str, ...] | None:
        """What the file itself lists, or has values for. A structure that a file lists was looked
        at, drawn or not; one that it does not list was not."""
        if own is None or not (own.names or data.labels):
            return None
        classes = legend_of(source, parts, data, "").classes(own.names)
        # A file may use a value that its own list lacks.
        values = {*own.names, *own.values} if own.names else classes
        return kept_parts(parts, {classes[value] for value in values if value in classes})

    def drawn(self, source: ImageSource) -> bool:
        return readers.is_dicom(Path(source.label_path))

    def decode(
        self,
        source: ImageSource,
        contents: readers.Contents,
        image: Decoded,
        data: DataSettings,
        meant: Legend | None = None,
    ) -> Drawing:
        """Values (S, R, C) uint16 as in the file."""
        volume = readers.decode(Path(source.label_path), contents, True, image.volume, meant)
        volume = lay_on(image.volume, volume, source)
        values, _ = geometry.orient(volume.array, image.volume.affine, image.axis)
        return Drawing(values, volume.names, volume.remarks)

    def classify(
        self, drawing: Drawing, legend: Legend, source: ImageSource, image: np.ndarray
    ) -> np.ndarray:
        names = drawing.names
        return to_classes(drawing.values, legend.classes(names), source, names)

    def blank(self, image: np.ndarray, parts: int) -> np.ndarray:
        return np.zeros(image.shape, np.uint8)

    def looked_at(self, drawing: Drawing, native: np.ndarray, *, negative: bool) -> np.ndarray:
        """Of other than ``negative`` images those with a value.

        By value, not by class: a slice whose only value is mapped to background was looked at. A
        slice of which every pixel is to be ignored tells nothing.
        """
        values = drawing.values
        looked = np.ones(len(values), bool) if negative else np.any(values, axis=(1, 2))
        told: np.ndarray = looked & np.any(native != IGNORED, axis=(1, 2))
        return told

    def shows(self, native: np.ndarray) -> tuple[int, ...]:
        return tuple(np.flatnonzero(np.bincount(native.ravel())).tolist())

    def only(self, native: np.ndarray, told: Sequence[int]) -> np.ndarray:
        kept = np.isin(native, [0, IGNORED, *told])
        return np.where(kept, native, np.uint8(0))

    def to_grid(self, native: np.ndarray, grid: Grid) -> np.ndarray:
        return grid.label(native)

    def cropped(self, native: np.ndarray, grid: Grid) -> float:
        shown = (native != 0) & (native != IGNORED)
        total = np.count_nonzero(shown)
        if grid.identity or not total:
            return 0.0
        rows, columns = grid.axes
        return 1 - np.count_nonzero(shown[:, rows.native, columns.native]) / total

    def pixels(self, drawing: Drawing) -> np.ndarray:
        return drawing.values

    def amounts(self, native: np.ndarray, parts: int, spacing_mm: Sequence[float]) -> np.ndarray:
        voxels = np.bincount(native.ravel(), minlength=parts + 1)[1 : parts + 1]
        volumes: np.ndarray = voxels * np.prod(spacing_mm) / 1000
        return volumes

    def draw(self, axes: Axes, label: np.ndarray, parts: Sequence[str]) -> None:
        """The outline of each structure."""
        for k in range(1, len(parts) + 1):
            if (label == k).any():
                axes.contour(label == k, [0.5], colors=[f"C{k - 1}"])


def structures_of(named: Mapping[str, Collection[str]]) -> tuple[str, ...]:
    """The structures that label files name, in the order they first appear; ``named`` maps each
    file to its names, ``ignore`` among them or not.

    Raises:
        UserError: two names that differ in case or spaces alone, which are one structure.
    """
    found: dict[str, str] = {}
    first: dict[str, str] = {}
    for file, names in named.items():
        for name in names:
            key = fold(name)
            if found.setdefault(key, name) != name:
                raise UserError(
                    f"{file} calls a structure {name!r} and {first[key]} calls it {found[key]!r}; "
                    "spell it alike in label_values, or set data.labels."
                )
            first.setdefault(key, file)
    return tuple(name for name in found.values() if name not in RESERVED)


def to_classes(
    values: np.ndarray,
    mapping: Mapping[int, int],
    source: ImageSource,
    names: Mapping[int, str] | None = None,
) -> np.ndarray:
    """Turn label values (uint16) into class indices (uint8) of the same shape; ``names`` are what
    the file calls its values, for the sentence.

    Raises:
        LabelMapError: a value outside the map.
    """
    # A drawing may list what it does not draw under any number.
    mapping = {value: k for value, k in mapping.items() if 0 <= value <= 65535}
    known = np.zeros(65536, bool)
    table = np.zeros(65536, np.uint8)
    known[list(mapping)] = True
    table[list(mapping)] = list(mapping.values())
    if not (inside := known[values]).all():
        others = np.unique(values[~inside])
        more = f" and {len(others) - 1} more" if len(others) > 1 else ""
        raise LabelMapError(
            f"{source.label_path} holds the value {called(int(others[0]), names or {})}{more}, "
            "which is in no structure; "
            "give it to one, or to background or ignore, in data.labels."
        )
    return table[values]


def _from_files(table: Table, data: DataSettings, survey: Survey) -> tuple[str, ...]:
    """The structures' names as the label files themselves give them, or ``label VALUE``.

    Names that differ in capitals and spaces alone are one. What is listed but drawn in no file is
    no structure.
    """
    names: dict[str, tuple[int, str]] = {}
    with_names = without = ""
    faults: list[tuple[str, Trouble]] = []
    labelled = 0
    for site, images in table.images.items():
        for image, found in zip(images, survey(SiteSpec(site, images), data), strict=True):
            labelled += bool(image.label_path)
            if found.left_out and image.label_path:
                trouble = found.troubles[0]
                file = image.label_path if trouble.on == "label" else image.path
                faults.append((file, trouble))
            elif found.facts is not None:
                numbered = tuple(f"label {k}" for k in range(1, found.facts.n_values))
                check_count(numbered, image.label_path)
                own = found.facts.names
                for value in found.facts.values or ():
                    # A file that has names says by them what its values are.
                    if value > 0 and (value in own or not own):
                        name = tidy(own.get(value, f"label {value}"))
                        names.setdefault(fold(name), (value, name))
                if own:
                    with_names = with_names or image.label_path
                elif found.facts.has_labels:
                    without = without or image.label_path
    if with_names and without:
        raise UserError(
            f"{with_names} names its structures and {without} does not name its values: say which "
            "are one by both, 'data.labels={NAME: [NAME IN THE FILE, VALUE]}'."
        )
    by_value = sorted(
        (one for key, one in names.items() if key not in RESERVED), key=lambda one: one[0]
    )
    if by_value:
        return tuple(name for _, name in by_value)
    if not faults:
        raise UserError("no label file holds a value above 0; mend them or set data.labels.")
    missing = sum(trouble.code == "missing-file" for _, trouble in faults)
    counted = f"{missing} do not exist" if missing == len(faults) else f"{len(faults)} are unusable"
    rest = "" if len(faults) == labelled else ", and the others hold no value above 0"
    file, first = faults[0]
    raise UserError(
        f"of {labelled} label files and their images {counted}{rest}; the first: {file} "
        f"{first.problem}; {first.way_out}."
    )
