"""A comparison's ranked table for the terminal."""

from __future__ import annotations

from pathlib import Path

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from fedshift.server.comparison.ranking import Result
from fedshift.server.comparison.words import deciding_p, gain, known, outcome, p_value, sentences
from fedshift.server.report.words import format_bytes

STYLES = {"better": "green", "worse": "red"}


def summary(result: Result, out: Path) -> RenderableType:
    """Return the ranked table, the result in words, and where the page in ``out`` is."""
    headline = result.comparison.headline
    unseen = any(row.unseen.known for row in result.standings)
    table = Table(
        title=f"{headline.label} on the test split",
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
    for row in result.standings:
        values = [row.mean.value, row.worst.value, *([row.unseen.value] if unseen else [])]
        table.add_row(
            str(row.place or "–"),
            Text(row.title.replace(" · ", "\n")),  # One line an axis: a terminal is narrow.
            *map(headline.cell, values),
            known(row.bytes, format_bytes),
            gain(row.difference.value, headline),
            known(deciding_p(row), p_value),
            Text(outcome(row), style=STYLES.get(row.outcome, "")),
        )
    said = [*sentences(result.standings, headline), *result.comparison.parts_told]
    said.append(f"comparison: {out / 'comparison.html'}")
    return Group(table, *map(Text, said))
