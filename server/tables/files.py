"""``cases.csv``, ``cross_site.csv`` and ``shift.csv``, written and read back."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from fedshift import UserError
from fedshift.protocol.measures import TaskCard
from fedshift.protocol.storage import write_atomic
from fedshift.protocol.tables import (
    CASE_KEYS,
    SHIFT_COLUMNS,
    SUMMARY_KEYS,
    cell_text,
    csv_text,
)

Row = dict[str, Any]

_INTEGERS = frozenset({"failed", "n", "n_failed"})
_TEXTS = frozenset({*CASE_KEYS, *SUMMARY_KEYS, "part", "metric", "site_a", "site_b"})
"""Every other column holds floats."""


def write_cases(path: Path, rows: Iterable[Mapping[str, Any]], task: TaskCard) -> None:
    """Write ``cases.csv``, ordered by its text columns; keys that are not columns stay out."""
    _write(path, _keys(task.case_columns, task), task.case_columns, rows)


def read_cases(path: Path, task: TaskCard) -> list[Row]:
    """Read what :func:`write_cases` wrote; the same floats, to the last bit."""
    return _with_part(_read(path, _keys(task.case_columns, task), task.case_columns))


def write_cross_site(path: Path, rows: Iterable[Mapping[str, Any]], task: TaskCard) -> None:
    """Write ``cross_site.csv``, ordered by its text columns."""
    _write(path, _keys(task.summary_columns, task), task.summary_columns, rows)


def read_cross_site(path: Path, task: TaskCard) -> list[Row]:
    """Read what :func:`write_cross_site` wrote."""
    return _with_part(_read(path, _keys(task.summary_columns, task), task.summary_columns))


def write_shift(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Write ``shift.csv``, ordered by its text columns."""
    _write(path, SHIFT_COLUMNS, SHIFT_COLUMNS, rows)


def read_shift(path: Path) -> list[Row]:
    """Read what :func:`write_shift` wrote."""
    return _read(path, SHIFT_COLUMNS, SHIFT_COLUMNS)


def _keys(columns: Sequence[str], task: TaskCard) -> tuple[str, ...]:
    """Under which key a row holds each column: that of the parts is the task's."""
    return tuple("part" if column == task.part else column for column in columns)


def _with_part(rows: Iterable[Row]) -> list[Row]:
    return [{"part": "", **row} for row in rows]


def _write(
    path: Path, keys: Sequence[str], columns: Sequence[str], rows: Iterable[Mapping[str, Any]]
) -> None:
    """Raises ``UserError`` when the file cannot be written; an earlier table is then untouched."""
    texts = [place for place, key in enumerate(keys) if key in _TEXTS]
    lines = sorted(
        ([_typed(key, row[key]) for key in keys] for row in rows),
        key=lambda line: [line[place] for place in texts],
    )
    write_atomic(path, csv_text(columns, lines))


def _typed(key: str, value: Any) -> str | int | float:
    if key in _TEXTS:
        return str(value)
    return int(value) if key in _INTEGERS else float(value)


def _read(path: Path, keys: Sequence[str], columns: Sequence[str]) -> list[Row]:
    """Read the named columns of a table.

    Raises ``UserError`` when the file cannot be read, lacks a column, or holds a broken line.
    """
    way_out = "evaluate the run again to write it anew"
    try:
        with path.open(newline="", encoding="utf-8") as file:
            lines = list(csv.reader(file))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"cannot read the table {path} ({error}); {way_out}") from error
    header = lines[0] if lines else []
    if missing := [column for column in columns if column not in header]:
        raise UserError(f"{path} has no column {', '.join(missing)}; {way_out}")
    rows = []
    for number, line in enumerate(lines[1:], start=2):
        try:
            texts = dict(zip(header, line, strict=True))
            read = zip(keys, columns, strict=True)
            rows.append({key: _from_text(key, texts[column]) for key, column in read})
        except ValueError as error:
            raise UserError(f"{path}, row {number} is broken ({error}); {way_out}") from error
    return rows


def _from_text(key: str, text: str) -> str | int | float:
    if key in _TEXTS:
        return cell_text(text)
    return int(text) if key in _INTEGERS else float(text)
