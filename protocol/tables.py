"""The tables of a run folder: how a cell is written, and the columns that every task has."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

_FORMULA = re.compile("'*[=+\\-@\t\r\n\uff1d\uff0b\uff0d\uff20]")
"""How a text begins that a spreadsheet would calculate, or that stands for one."""


def text_cell(text: str) -> str:
    """``text`` as a table's cell: an apostrophe comes before what a spreadsheet would take for a
    formula; all other texts stay as they are. Numbers are no texts and are written as numbers."""
    return f"'{text}" if _FORMULA.match(text) else text


def cell_text(cell: str) -> str:
    """Undo :func:`text_cell`, exactly."""
    return cell[1:] if cell.startswith("'") and _FORMULA.match(cell) else cell


def csv_text(columns: Sequence[str], rows: Iterable[Sequence[str | float]]) -> str:
    """A whole comma-separated table with its header line.

    Texts are written by :func:`text_cell`, floats as the shortest text that reads back the same.
    (Python's own writer leaves a carriage return bare, which its reader takes for a row's end.)
    """
    return "".join(",".join(map(_cell, line)) + "\n" for line in (columns, *rows))


def _cell(value: str | float) -> str:
    if isinstance(value, float):
        return repr(float(value))
    text = text_cell(value) if isinstance(value, str) else str(value)
    if any(mark in text for mark in ',"\r\n'):
        return '"' + text.replace('"', '""') + '"'
    return text


CASE_KEYS = ("model", "trained_on", "site", "vendor", "split", "subject", "case")
"""How a row of ``cases.csv`` begins; the part of the label, the task's measures and ``failed``
follow."""

SUMMARY_KEYS = ("model", "trained_on", "site", "vendor")
SUMMARY_COLUMNS = ("metric", "n", "n_failed", "mean", "std", "median", "ci_low", "ci_high")
"""``cross_site.csv``: over the test split; between the two comes the part of the label."""

SHIFT_COLUMNS = ("site_a", "site_b", "metric", "value")
