"""The manifest: a table with an image a row, its label, site and subject."""

from __future__ import annotations

import csv
import io
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from fedshift import UserError
from fedshift.sites import readers
from fedshift.sites.settings import COLUMNS, REQUIRED_COLUMNS, DataSettings, nearest
from fedshift.sites.types import Domain, ImageSource


@dataclass(frozen=True)
class Table:
    """A manifest, read: images by site, and what its ``label_values`` say by label file."""

    images: Mapping[str, tuple[ImageSource, ...]]
    label_values: Mapping[str, str]
    unmatched: int
    """Rows in which ``data.site_pattern`` found nothing; they belong to no site."""


def read_manifest(data: DataSettings) -> Table:
    """Read the table ``data.manifest``; no image is opened, but DICOM tags are.

    Raises:
        UserError: the table is missing, unreadable, empty, lacks a column or a cell, or lists an
            image twice.
    """
    if data.manifest is None:
        raise UserError("data.manifest is not set; give the table of images, data.manifest=PATH.")
    path = Path(data.manifest).expanduser()
    try:
        stamp = path.stat()
    except OSError:
        raise UserError(f"the manifest {path} does not exist; mend data.manifest.") from None
    columns = {name: data.columns.get(name, name) for name in COLUMNS}
    if data.site_column is not None:
        columns["site"] = data.site_column
    changed = (stamp.st_size, stamp.st_mtime_ns, stamp.st_ctime_ns)
    return _read(path, changed, tuple(columns.items()), data.site_pattern)


@lru_cache(maxsize=4)
def _read(
    path: Path,
    changed: tuple[int, ...],
    column_of: tuple[tuple[str, str], ...],
    site_pattern: str | None,
) -> Table:
    """Parse the table; cached, because every site of a federation asks for the same one."""
    columns = dict(column_of)
    header, rows = _rows(path)
    for name in REQUIRED_COLUMNS:
        needed = name != "site" or site_pattern is None
        if needed and columns[name] not in header:
            raise UserError(
                f"{path} has no column {columns[name]!r}; "
                f"{nearest('rename it, or set data.columns, to', columns[name], header)}."
            )
    stems = Counter(_stem(row.get(columns["path"], "")) for _, row in rows)
    images: dict[str, list[ImageSource]] = {}
    label_values: dict[str, str] = {}
    seen: dict[str, int] = {}
    unmatched = 0
    for number, row in rows:
        cell = {name: row.get(column, "") for name, column in columns.items()}
        where = f"{path}, line {number}"
        required = ["path", "subject"] + (["site"] if site_pattern is None else [])
        for name in required:
            if not cell[name]:
                raise UserError(f"{where}: the column {columns[name]!r} is empty; fill it.")
        if cell["path"] in seen:
            raise UserError(
                f"{where}: {cell['path']} is already on line {seen[cell['path']]}; keep one row."
            )
        seen[cell["path"]] = number
        site = cell["site"]
        if site_pattern is not None:
            match = re.search(site_pattern, cell["path"])
            if match is None or not match[1]:
                unmatched += 1
                continue
            site = match[1]
        unique = stems[_stem(cell["path"])] == 1
        source = _source(path.parent, cell, unique=unique, row=number)
        if cell["label_values"] and source.label_path:
            label_values[source.label_path] = cell["label_values"]
        images.setdefault(site, []).append(source)
    if not images:
        reason = (
            f"data.site_pattern {site_pattern!r} matches none of its {unmatched} paths"
            if unmatched
            else "it has no rows"
        )
        raise UserError(f"{path} gives no site: {reason}.")
    return Table({site: tuple(found) for site, found in images.items()}, label_values, unmatched)


def _rows(path: Path) -> tuple[list[str], list[tuple[int, dict[str, str]]]]:
    """The header, and each row with its line number; cells stripped."""
    delimiters = {".tsv": "\t", ".csv": ","}
    if path.suffix.lower() not in delimiters:
        raise UserError(f"{path} must be a .tsv or .csv table; save it as one.")
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        reason = type(error).__name__
        raise UserError(f"{path} cannot be read ({reason}); save it as UTF-8 text.") from None
    reader = csv.DictReader(
        io.StringIO(text, newline=""), delimiter=delimiters[path.suffix.lower()]
    )
    try:
        header = [name.strip() for name in reader.fieldnames or []]
        reader.fieldnames = header
        rows = [
            (reader.line_num, {k: (v or "").strip() for k, v in row.items() if k is not None})
            for row in reader
        ]
    except csv.Error as error:
        raise UserError(f"{path}, line {reader.line_num}: {error}; mend the table.") from None
    return header, rows


def _source(folder: Path, cell: Mapping[str, str], *, unique: bool, row: int) -> ImageSource:
    path = folder / cell["path"]
    vendor, scanner = cell["vendor"], cell["scanner"]
    if not (vendor and scanner) and readers.is_dicom(path):
        from_tags = readers.dicom_domain(path)
        vendor, scanner = vendor or from_tags[0], scanner or from_tags[1]
    return ImageSource(
        case=_stem(cell["path"]) if unique else cell["path"],
        subject=cell["subject"],
        domain=Domain(vendor or "unknown", scanner),
        session=cell["session"],
        path=str(path),
        label_path=str(folder / cell["label_path"]) if cell["label_path"] else "",
        spacing_mm=parse_spacing(cell["spacing_mm"]),
        row=row,
    )


def _stem(path: str) -> str:
    name = Path(path).name
    for suffix in (".nii.gz", ".nii", ".png", ".dcm", ".ima"):
        if name.lower().endswith(suffix):
            return name[: -len(suffix)]
    return name


def parse_spacing(text: str) -> tuple[float, ...] | None:
    """Read ``0.5``, ``0.5x0.5`` or ``0.5x0.5x3`` (rows, columns, slices; mm).

    Anything else, zero included, is unknown: None.
    """
    number = r"\d+\.?\d*(?:e-?\d+)?|\.\d+"
    if not re.fullmatch(
        rf"(?:{number})(?:\s*[x×*,; ]\s*(?:{number})){{0,2}}(?:\s*mm)?", text, re.I
    ):
        return None
    values = tuple(float(part) for part in re.findall(number, text, re.I))
    return values if min(values) > 0 else None
