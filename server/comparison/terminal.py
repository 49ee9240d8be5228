"""A comparison's ranked table for the terminal."""

from __future__ import annotations

from pathlib import Path

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from fedshift.server.comparison.tables import (
    deciding_p,
    gain,
    known,
    outcome,
    p_value,
    read_standings,
)
from fedshift.server.comparison.words import sentences
from fedshift.server.report.run import format_bytes, format_number

STYLES = {"better": "green", "worse": "red"}


def summary(out: Path) -> RenderableType:
    """Return the ranked table of the comparison in ``out``, its result in words, and its page.

    Raises :class:`fedshift.UserError` when ``out`` holds no comparison that was built.
    """
    standings = read_standings(out / "comparison.csv")
    unseen = any(row.unseen.known for row in standings)
    table = Table(
        title="Dice on the test split",
        title_justify="left",
        title_style="bold",
        box=box.SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
    )
    table.add_column("", justify="right")
    table.add_column("entrant", no_wrap=True)
    for name in ("mean", "worst", *(["unseen"] if unseen else []), "sent"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("gain", justify="right", no_wrap=True)
    table.add_column("p", justify="right", no_wrap=True)
    table.add_column("")
    for row in standings:
        values = [row.mean.value, row.worst.value, *([row.unseen.value] if unseen else [])]
        table.add_row(
            str(row.place or "–"),
            Text(row.title.replace(" · ", "\n")),  # One line an axis: a terminal is narrow.
            *(format_number(value) for value in values),
            known(row.bytes, format_bytes),
            known(row.difference.value, gain),
            known(deciding_p(row), p_value),
            Text(outcome(row), style=STYLES.get(row.outcome, "")),
        )
    lines: list[RenderableType] = [table, *(Text(line) for line in sentences(standings))]
    page = out / "comparison.html"
    if page.is_file():
        lines.append(Text(f"comparison: {page}"))
    return Group(*lines)
