"""Colour, marker and name of an entrant, the same in every figure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from fedshift.protocol.words import short
from fedshift.server.comparison.ranking import Standing
from fedshift.server.report.figures import PALETTE

MARKERS = "os^Dv"


def line_name(text: str) -> str:
    """An entrant's name as a figure has room for it."""
    return short(text, 60)


def looks(standings: Sequence[Standing]) -> dict[str, dict[str, Any]]:
    """Colour and marker of each entrant, the same in every figure: by its order in the table."""
    return {
        row.entrant: {
            "color": PALETTE[index % len(PALETTE)],
            "marker": MARKERS[index // len(PALETTE) % len(MARKERS)],
        }
        for index, row in enumerate(standings)
    }


def legend(figure: Figure, standings: Sequence[Standing], **line: Any) -> None:
    """Name the entrants above ``figure``; ``line`` is how their marks are drawn there."""
    look = looks(standings)
    handles = [
        Line2D([], [], label=line_name(row.title), **{"linestyle": "", **look[row.entrant], **line})
        for row in standings
    ]
    widest = max(len(line_name(row.title)) for row in standings)
    figure.legend(
        handles=handles, loc="outside upper left", ncols=max(1, min(6, 110 // (widest + 6)))
    )
