"""A comparison of runs: who is best, whether the difference is real, and the page that shows it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from fedshift.protocol.storage import write_atomic
from fedshift.server.comparison import tables, typeset
from fedshift.server.comparison.cells import Cell
from fedshift.server.comparison.figures import draw_all
from fedshift.server.comparison.page import page
from fedshift.server.comparison.ranking import Result, rank
from fedshift.server.comparison.read import read
from fedshift.server.comparison.terminal import summary

__all__ = ["Cell", "Result", "build", "summary"]


def build(out: Path, cells: Sequence[Cell], baseline: str, hours: float | None = None) -> Result:
    """Write what the finished cells show into ``out`` and return it; those that failed or are left
    are counted.

    ``baseline`` is the name of the entrant that the others are tested against (``Cell.entrant``),
    ``hours`` a simulated time at which they are also ranked (by default the longest that all of
    them reached). Writes ``comparison.csv``, ``comparison_sites.csv``, ``comparison.md``,
    ``comparison.tex``, ``figures/*.png`` and ``comparison.html``; equal run folders give equal
    bytes. Raises :class:`fedshift.UserError` when ``baseline`` is no entrant's name, no cell can be
    read, or two learn different tasks.
    """
    result = rank(read(cells, baseline), hours)
    tables.write_standings(out / "comparison.csv", result)
    tables.write_sites(out / "comparison_sites.csv", result)
    typeset.write_markdown(out / "comparison.md", result)
    typeset.write_latex(out / "comparison.tex", result)
    figures = draw_all(result)
    for path in (out / "figures").glob("*.png"):
        if path.name not in figures:
            path.unlink()  # Of an earlier, larger grid.
    for name, png in figures.items():
        write_atomic(out / "figures" / name, png)
    write_atomic(out / "comparison.html", page(result, figures))
    return result
