"""What an entrant's result costs: trade-offs, and the course of training."""

from __future__ import annotations

import math
from collections.abc import Mapping
from html import escape

from fedshift.server.comparison.ranking import Result
from fedshift.server.comparison.words import time_words, with_unit
from fedshift.server.report.html import breakable, figure, section


def trade_off(result: Result, figures: Mapping[str, bytes]) -> str:
    """The mean against the worst site and against what is sent; empty without the figure."""
    name = "trade_off.png"
    if name not in figures:
        return ""
    whole = result.comparison.headline.whole
    lines = "" if whole else ", and lines are 95 % intervals over subjects"
    return section(
        "Trade-offs",
        figure(
            figures[name],
            name,
            f"Up is a better mean; on the left, right is a better worst site{lines}; on the right, "
            "left is less traffic.",
        ),
    )


def training(result: Result, figures: Mapping[str, bytes]) -> str:
    """The curves and, of runs with a clock, the ranking at one time; empty without the figure."""
    name = "learning_curves.png"
    if name not in figures:
        return ""
    headline = result.comparison.headline
    timed = sorted(
        (row for row in result.standings if not math.isnan(row.at_hours)),
        key=lambda row: -headline.sign * row.at_hours,
    )
    reached, ranking = with_unit(f"validation {headline.title}", headline), ""
    if timed:
        lines = "".join(
            f'<tr><td>{place}</td><th scope="row">{breakable(row.title)}</th>'
            f"<td>{headline.cell(row.at_hours)}</td></tr>"
            for place, row in enumerate(timed, start=1)
        )
        ranking = (
            f"<h3>After {time_words(timed[0].hours)} of simulated time</h3>"
            '<div class="scroll"><table><thead><tr><th></th><th scope="col" class="text">entrant'
            f'</th><th scope="col">{escape(reached)}</th></tr></thead>'
            f"<tbody>{lines}</tbody></table></div>"
        )
    return section(
        "Training",
        figure(
            figures[name],
            name,
            f"Validation {headline.title} after each round, the mean over the sites and seeds: "
            "every site scores the model that it would use.",
        )
        + ranking,
    )
