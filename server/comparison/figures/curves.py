"""Trade-offs and learning curves."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter

from fedshift.server.comparison.figures.looks import legend, looks
from fedshift.server.comparison.ranking import Result
from fedshift.server.comparison.statistics import Estimate
from fedshift.server.comparison.training import SECONDS_PER_HOUR, Curve, curve, trainings
from fedshift.server.comparison.words import with_unit
from fedshift.server.report.words import format_bytes


def trade_off(result: Result) -> Figure:
    """The mean over sites against the worst site and, where anything was sent, against bytes; up
    is better, and right at the worst site."""
    scored, headline = result.scored, result.comparison.headline
    sent = any(row.bytes > 0 for row in scored)
    figure = Figure(figsize=(10.2 if sent else 5.4, 3.6), layout="constrained")
    grid = figure.subplots(1, 1 + sent, squeeze=False, sharey=True)[0]
    look = looks(scored)
    for row in scored:
        _cross(grid[0], row.worst, row.mean, **look[row.entrant])
        if sent:
            _cross(grid[1], Estimate(row.bytes), Estimate(row.mean.value), **look[row.entrant])
    grid[0].set_xlabel(with_unit(f"{headline.title} at the worst site", headline))
    grid[0].set_ylabel(with_unit(f"mean {headline.title} over sites", headline))
    if headline.better == "lower":
        grid[0].invert_xaxis()
        grid[0].invert_yaxis()  # And with it the other plot's, which shares it.
    if sent:
        amounts = [row.bytes for row in scored if row.bytes > 0]
        if max(amounts) > 20 * min(amounts):
            grid[1].set_xscale("log")
            grid[1].xaxis.set_major_locator(LogLocator(subs=(1, 3)))
            # Of their own small ticks have labels, too, written in TeX.
            grid[1].xaxis.set_minor_formatter(NullFormatter())
        else:
            grid[1].locator_params(axis="x", nbins=5)
        grid[1].xaxis.set_major_formatter(lambda value, _: format_bytes(value))
        grid[1].set_xlabel("sent in a whole run, to the sites and back")
    legend(figure, scored)
    return figure


def _cross(axes: Axes, x: Estimate, y: Estimate, color: str, marker: str) -> None:
    """A point with its intervals."""
    if x.has_interval:
        axes.plot([x.low, x.high], [y.value] * 2, color=color, linewidth=1, alpha=0.45)
    if y.has_interval:
        axes.plot([x.value] * 2, [y.low, y.high], color=color, linewidth=1, alpha=0.45)
    axes.plot([x.value], [y.value], color=color, marker=marker, markersize=7, linestyle="")


def curves_of(result: Result) -> dict[str, Curve]:
    """The curve of every entrant with one, by name, in the table's order."""
    entrants = {entrant.name: entrant for entrant in result.comparison.entrants}
    found = {row.entrant: curve(trainings(entrants[row.entrant])) for row in result.standings}
    return {name: item for name, item in found.items() if len(item.rounds)}


def learning_curves(result: Result, found: Mapping[str, Curve]) -> Figure:
    """The headline on validation by round and, where the runs have a clock, by simulated time."""
    clock = all(np.isfinite(item.hours).all() for item in found.values())
    figure = Figure(figsize=(10.2 if clock else 7.0, 3.6), layout="constrained")
    grid = figure.subplots(1, 1 + clock, squeeze=False, sharey=True)[0]
    # Seconds of simulated time make a short run's axis readable.
    short = clock and max(item.hours[-1] for item in found.values()) < 0.1
    scale, unit = (SECONDS_PER_HOUR, "seconds") if short else (1, "hours")
    rows = [row for row in result.standings if row.entrant in found]
    look = looks(result.standings)
    for row in rows:
        item = found[row.entrant]
        shown = {**look[row.entrant], "markersize": 4}
        grid[0].plot(item.rounds, item.values, **shown)
        if clock:
            grid[1].plot(scale * item.hours, item.values, **shown)
    grid[0].set_xlabel("round")
    grid[0].xaxis.get_major_locator().set_params(integer=True)
    headline = result.comparison.headline
    grid[0].set_ylabel(with_unit(f"validation {headline.title}, mean of sites", headline))
    if clock:
        grid[1].set_xlabel(f"simulated {unit}")
        hours = rows[0].hours
        if not math.isnan(hours):
            grid[1].axvline(scale * hours, color="#999999", linewidth=0.8, linestyle="--")
    legend(figure, rows, linestyle="-", markersize=4)
    return figure
