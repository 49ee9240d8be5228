"""The manifest: a table with an image a row, its site and subject, and its label.

Of the columns for labels (:mod:`.labels`) those of the form that is read count; the others may be
there for other tasks.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path

from fedshift import UserError
from fedshift.sites import readers
from fedshift.sites.labels import FORMS, Form, form_of
from fedshift.sites.labels.annotation import parse_annotates, parse_empty
from fedshift.sites.names import fold, letters, spelling, tidy
from fedshift.sites.paths import Files
from fedshift.sites.settings import COLUMNS, REQUIRED_COLUMNS, DataSettings, nearest
from fedshift.sites.table import read_table
from fedshift.sites.types import Domain, ImageSource, Table


def read_manifest(data: DataSettings) -> Table:
    """Read the table ``data.manifest``; no image is opened, but DICOM tags are.

    Raises:
        UserError: the table is missing, unreadable, empty, lacks a column or a cell, lists an
            image twice, or holds what can mean two things: two sites, or two subjects of one
            site, that differ only in capitals or spaces, or a spacing.
    """
    if data.manifest is None:
        raise UserError("data.manifest is not set; give the table of images, data.manifest=PATH.")
    path, changed = _table("manifest", data.manifest)
    form = form_of(data)
    labels, labels_changed = None, None
    if data.label_table is not None:
        if not form.tabled:
            raise UserError(
                f"data.label_table is no setting of labels of the form {form.name}, which stand in "
                f"the column {form.columns[0] if form.columns else 'path'}; take it out."
            )
        labels, labels_changed = _table("label_table", data.label_table)
    columns = {name: data.columns.get(name, name) for name in COLUMNS}
    if data.site_column is not None:
        columns["site"] = data.site_column
    return _read(
        path, (changed, labels_changed), tuple(columns.items()), data.site_pattern, form, labels
    )


def _table(key: str, name: str) -> tuple[Path, tuple[int, ...]]:
    """The file of the setting ``data.KEY``, and by what a change of it is noticed."""
    path = Files(Path()).locate(name)
    try:
        stamp = path.stat()
    except OSError:
        what = key.replace("_", " ")
        raise UserError(f"the {what} {path} does not exist; mend data.{key}.") from None
    return path, (stamp.st_size, stamp.st_mtime_ns, stamp.st_ctime_ns)


@lru_cache(maxsize=4)
def _read(
    path: Path,
    changed: tuple[object, ...],
    column_of: tuple[tuple[str, str], ...],
    site_pattern: str | None,
    form: Form,
    labels: Path | None,
) -> Table:
    """Parse the table; cached, because every site of a federation asks for the same one."""
    columns = dict(column_of)
    header, rows = read_table(path, tuple(columns.values()))
    for name in REQUIRED_COLUMNS:
        needed = name != "site" or site_pattern is None
        if needed and columns[name] not in header:
            raise UserError(
                f"{path} has no column {columns[name]!r}; "
                f"{nearest('rename it, or set data.columns, to', columns[name], header)}."
            )
    _check_label_columns(path, columns, header, form, labels)
    _check_spelt(path, columns, header)
    required = ["path", "subject"] + (["site"] if site_pattern is None else [])
    images: dict[str, list[ImageSource]] = {}
    label_values: dict[str, str] = {}
    forms: set[str] = set()
    seen: dict[Path, int] = {}
    files, names = Files(path.parent), _Names(path)
    for name, column in columns.items():
        if name not in REQUIRED_COLUMNS and column not in (name, *header):
            raise UserError(
                f"{path} has no column {column!r}, which data.columns.{name} names; "
                f"{nearest('there is', column, header)}."
            )
    stems = Counter(readers.stem(Path(_slashes(row.get(columns["path"], "")))) for _, row in rows)
    unmatched = 0
    for number, row in rows:
        cell = {name: row.get(column, "") for name, column in columns.items()}
        where = f"{path}, line {number}"
        for name in required:
            if not cell[name]:
                raise UserError(f"{where}: the column {columns[name]!r} is empty; fill it.")
        file = files.locate(cell["path"])
        if file in seen:
            raise UserError(
                f"{where}: {cell['path']} is already on line {seen[file]}; keep one row."
            )
        seen[file] = number
        written = _slashes(cell["path"])
        site = cell["site"]
        if site_pattern is not None:
            match = re.search(site_pattern, spelling(cell["path"])) or re.search(
                site_pattern, written
            )
            if match is None or not match[1]:
                unmatched += 1
                continue
            site = match[1]
        site = names.one("site", site, number)
        stem = readers.stem(Path(written))
        forms |= {one.name for one in FORMS.values() if one.named(cell)}
        label = form.named(cell)
        source = ImageSource(
            case=stem if stems[stem] == 1 else written,
            subject=names.one(f"subject of {site}", cell["subject"], number),
            domain=names.domain(file, cell["vendor"], cell["scanner"]),
            session=tidy(cell["session"]),
            path=str(file),
            label_path=form.in_table(labels, str(file), cell)
            if labels is not None
            else str(files.locate(label))
            if label and form.files
            else "",
            spacing_mm=parse_spacing(cell["spacing_mm"], where),
            row=number,
            annotates=parse_annotates(tidy(cell["annotates"])),
            empty=parse_empty(tidy(cell["empty"]), where),
            modality=cell["modality"].upper(),
            category="" if form.files else tidy(label),
        )
        if form.by_value and cell["label_values"] and source.label_path:
            meaning = tidy(cell["label_values"])
            if label_values.setdefault(source.label_path, meaning) != meaning:
                raise UserError(
                    f"{where}: {label} has the label_values {meaning!r}, and in an "
                    f"earlier row {label_values[source.label_path]!r}; write one of them in both."
                )
        images.setdefault(site, []).append(source)
    if not images:
        reason = (
            f"data.site_pattern {site_pattern!r} matches none of its {unmatched} paths"
            if unmatched
            else "it has no rows"
        )
        raise UserError(f"{path} gives no site: {reason}.")
    return Table(
        {site: tuple(found) for site, found in images.items()},
        label_values,
        tuple(sorted(forms)),
        unmatched,
    )


def _check_label_columns(
    path: Path, columns: Mapping[str, str], header: Sequence[str], form: Form, labels: Path | None
) -> None:
    """Raise :class:`UserError` where nothing could give a label of ``form``."""
    named = [columns[name] for name in form.columns]
    if labels is not None or not named or {*named} & {*header}:
        return
    others = [
        f"{one.name} (column {columns[one.columns[0]]!r})"
        for one in FORMS.values()
        if one.columns and columns[one.columns[0]] in header
    ]
    table = ", or give their table as data.label_table" if form.tabled else ""
    if others:
        raise UserError(
            f"{path} has no column {named[0]!r}, from which the task reads labels of the form "
            f"{form.name}; it has {' and '.join(others)}: take a task of that form (`fedshift "
            f"tasks` lists them), add the column{table}."
        )
    raise UserError(
        f"{path} has no column {named[0]!r}; "
        f"{nearest('rename it, or set data.columns, to', named[0], header)}{table}."
    )


def _check_spelt(path: Path, columns: Mapping[str, str], header: Sequence[str]) -> None:
    """Raise :class:`UserError` where one of our ``columns`` is there in another spelling alone, and
    would be passed over."""
    for name, column in columns.items():
        if column in header:
            continue
        for other in header:
            if other not in columns.values() and letters(other) == letters(column):
                raise UserError(
                    f"{path} has the column {other!r}, and {column!r} is what is read: rename it, "
                    f"or say with data.columns.{name} which column is meant."
                )


class _Names:
    """The names of one table, each in the spelling of its first row."""

    def __init__(self, table: Path) -> None:
        self._table = table
        self._known: dict[tuple[str, str], tuple[str, int]] = {}
        self._makers: dict[str, str] = {}

    def one(self, kind: str, text: str, line: int) -> str:
        """The name ``text``; raise where another of its ``kind`` is alike, but not the same."""
        name = spelling(text)
        first, where = self._known.setdefault((kind, fold(name)), (name, line))
        if name != first:
            raise UserError(
                f"{self._table}: the {kind} is {first!r} on line {where} and {name!r} on line "
                f"{line}; write one name if they are one, or else names that differ in more than "
                "capitals and spaces."
            )
        return tidy(name)

    def domain(self, image: Path, vendor: str, scanner: str) -> Domain:
        """Vendor and scanner of the cells, else of the image's tags.

        Capitals and spaces tell no two makers apart: SIEMENS is Siemens.
        """
        if not (vendor and scanner) and readers.is_dicom(image):
            from_tags = readers.dicom_domain(image)
            vendor, scanner = vendor or from_tags[0], scanner or from_tags[1]
        vendor, scanner = (
            self._makers.setdefault(fold(name), tidy(name)) for name in (vendor, scanner)
        )
        return Domain(vendor or "unknown", scanner)


def _slashes(path: str) -> str:
    return spelling(path).replace("\\", "/")


_UNKNOWN = re.compile(
    r"(?:(?:n\.?/?a\.?|nan|none|null|unknown|\?|-+)\s*(?:[(\[].*)?)?", re.I | re.S
)
_NUMBER = re.compile(r"(?:(?:0|[1-9]\d*)(?:\.\d*)?|\.\d+)(?:e[+-]?\d+)?", re.ASCII | re.I)
_MARK = re.compile(r"\s*[x×*;\\]\s*|\s+", re.I)


def parse_spacing(text: str, where: str) -> tuple[float, ...] | None:
    """Read ``0.5``, ``0.5x0.5`` or ``0.5x0.5x3`` (rows, columns, slices; mm).

    Between the lengths stand x, ×, *, a semicolon, a backslash or spaces; or commas, beside
    decimal points or spaces. A comma is a decimal comma in ``1,5`` and beside another mark,
    ``0,75x0,75``. Nothing, zeros alone and a word for unknown, with or without a remark in
    brackets, are unknown: None.

    Raises:
        UserError: anything else, and what can be read in two ways, as ``1,5,3`` and ``1,1``.
    """
    bare = spelling(text)
    if _UNKNOWN.fullmatch(bare):
        return None
    if (listed := re.fullmatch(r"\((.*)\)|\[(.*)\]", bare)) is not None:
        bare = listed[1] or listed[2] or ""
    bare = re.sub(r"(?<=[\d.\s])mm(?=$|[^a-z]|x)", "", bare, flags=re.I).strip()
    parts = _lengths(bare, where)
    if len(parts) <= 3 and all(_NUMBER.fullmatch(part) for part in parts):
        values = tuple(float(part) for part in parts)
        if not any(values):
            return None
        if all(0 < value < math.inf for value in values):
            return values
    raise UserError(
        f"{where}: the spacing {text!r} is not one to three lengths above 0 in mm; write them as "
        "0.5x0.5x3, or n/a where it is unknown."
    )


def _lengths(text: str, where: str) -> list[str]:
    """Cut a spacing into its numbers, written with decimal points."""
    if "," not in text:
        return _MARK.split(text)
    if "." in text and not re.fullmatch(r"[1-9]\d{0,2}(\.\d{3})+,\d+", text):
        # Points are the decimals here, so the commas are not; but 1.000,5 may be a thousand.
        return re.split(r"\s*,\s*", text)
    listed = re.split(r", +", text)
    if len(listed) > 1:
        parts = listed
        decimal = sum("," in part for part in parts)
        # 1, 1, 3 and 0,5, 0,5 are lists; 1, 5 may be a number with a space in it.
        plain = decimal == len(parts) or (not decimal and len(parts) > 2)
    else:
        parts = _MARK.split(text)
        # Two equal whole numbers, 1,1, are as likely two lengths.
        plain = (
            "." not in text
            and not re.fullmatch(r"(\d+),\1", text)
            and all(part.count(",") < 2 for part in parts)
        )
    if not plain:
        raise UserError(
            f"{where}: the commas of the spacing {text!r} can be decimal or stand between lengths; "
            "write it with points and x, as 1.5 or 1x5."
        )
    return [re.sub(r"(?<=\d),(?=\d)", ".", part) for part in parts]
