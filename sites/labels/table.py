"""Tables of points or boxes: a row each, beside one image or for many.

A table with a column ``path`` serves every image that it names, by paths relative to itself; one
without belongs to the image in whose row of the manifest it stands. It is a .tsv or .csv file, or
JSON: a list of objects whose keys are the columns.
"""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from fedshift import UserError
from fedshift.sites.findings import FileFault
from fedshift.sites.names import letters, meant, tidy
from fedshift.sites.paths import Files
from fedshift.sites.settings import nearest
from fedshift.sites.table import DELIMITERS, decimal, json_of, read_table

PATH = "path"
CLASS, NAME = "class", "name"
BLANK = ("", "nan", "n/a", "na", "null", "none")
"""What a cell without a number holds, in lower case."""


@dataclass(frozen=True)
class Row:
    """A row of a table of labels: its line (in JSON its place), and its cells by column."""

    line: int
    cells: Mapping[str, str]


@dataclass(frozen=True)
class LabelTable:
    """A table of labels: its columns, and its rows by the image that they name (the empty path
    where it has no column ``path``)."""

    file: Path
    columns: tuple[str, ...]
    rows: Mapping[str, tuple[Row, ...]]
    names: Mapping[str, tuple[str, ...]]
    """What the columns ``class`` and ``name`` hold, each text once, in the rows' order."""

    @property
    def shared(self) -> bool:
        """Whether it says of each row which image it belongs to."""
        return PATH in self.columns

    def of(self, image: str) -> tuple[Row, ...]:
        """The rows of ``image``, a path."""
        return self.rows.get(os.path.realpath(image) if self.shared else "", ())

    def number(self, row: Row, column: str) -> float | None:
        """The number in a cell; None where it is blank.

        Raises :class:`FileFault` where it holds something else."""
        text = row.cells.get(column, "")
        if text.lower() in BLANK:
            return None
        try:
            return decimal(text)
        except ValueError:
            raise FileFault(
                "no-number",
                self.file,
                f"holds {text!r} in the column {column!r} on line {row.line}, which is no number",
                "write a number with a decimal point, or leave the cell empty",
            ) from None

    def required(self, row: Row, columns: Sequence[str]) -> list[float]:
        """The numbers of ``columns``; raises :class:`FileFault` where one is missing, too."""
        found = [self.number(row, column) for column in columns]
        if None in found:
            raise FileFault(
                "no-number",
                self.file,
                f"has no number in the column {columns[found.index(None)]!r} on line {row.line}",
                "fill it, or take the row out",
            )
        return [value for value in found if value is not None]


def read_labels(file: str, wanted: Sequence[str]) -> LabelTable:
    """The table of labels ``file``, in which columns such as ``wanted`` are looked for; remembered
    until the file changes.

    Raises:
        UserError: it does not exist, is no table, or lacks every column of ``wanted``.
    """
    path = Path(file)
    try:
        found = path.stat()
    except OSError:
        raise FileFault(
            "missing-file", path, "does not exist", "mend the path in the table or put it there"
        ) from None
    return _read(path, tuple(wanted), (found.st_size, found.st_mtime_ns, found.st_ctime_ns))


@lru_cache(maxsize=4096)
def _read(path: Path, wanted: tuple[str, ...], changed: tuple[int, ...]) -> LabelTable:
    if path.suffix.lower() == ".json":
        columns, rows = _read_json(path)
    elif path.suffix.lower() in DELIMITERS:
        columns, rows = read_table(path, (PATH, *wanted))
    else:
        raise FileFault(
            "unknown-format",
            path,
            "is no table of labels",
            "give a .tsv or .csv file, or a list of objects as .json",
        )
    if PATH not in columns and (like := [name for name in columns if letters(name) == PATH]):
        raise UserError(
            f"{path} has the column {like[0]!r}, and rows say whose image they are in the column "
            f"{PATH!r}: rename it, or take it out if all rows are of one image."
        )
    by_image: dict[str, list[Row]] = defaultdict(list)
    places: dict[str, str] = {"": ""}
    files = Files(path.parent)
    for line, cells in rows:
        text = cells.get(PATH, "")
        if PATH in columns and not text:
            raise UserError(f"{path}, line {line}: the column 'path' is empty; fill it.")
        if text not in places:
            places[text] = os.path.realpath(files.locate(text))
        by_image[places[text]].append(Row(line, cells))
    names = {
        column: tuple(dict.fromkeys(meant(cells.get(column, "")) for _, cells in rows))
        for column in (CLASS, NAME)
    }
    grouped = {key: tuple(own) for key, own in by_image.items()}
    return LabelTable(path, tuple(columns), grouped, names)


def _read_json(path: Path) -> tuple[list[str], list[tuple[int, dict[str, str]]]]:
    try:
        found = json_of(path.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError) as error:
        raise FileFault("damaged", path, f"is no readable JSON ({error})", "mend it") from None
    if not isinstance(found, list) or not all(isinstance(one, dict) for one in found):
        raise FileFault(
            "unknown-format",
            path,
            "is no list of objects",
            "write a list whose objects have the columns as keys",
        )
    rows = [
        (number, {tidy(k): "" if v is None else str(v).strip() for k, v in one.items()})
        for number, one in enumerate(found, 1)
    ]
    return list(dict.fromkeys(key for _, cells in rows for key in cells)), rows


def lacks(table: LabelTable, column: str, what: str) -> UserError:
    """The sentence of a table without what is looked for."""
    return UserError(
        f"{table.file} has no {what}; {nearest('there is', column, table.columns)}: rename its "
        "columns as docs/sites.md names them."
    )
