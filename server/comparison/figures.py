"""The figures of a comparison, in the style of the run report's."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from fedshift.protocol.measures import Measure
from fedshift.protocol.words import short
from fedshift.server.comparison.ranking import Result, Standing
from fedshift.server.comparison.statistics import Estimate, Friedman, alike
from fedshift.server.comparison.training import SECONDS_PER_HOUR, Curve, curve, trainings
from fedshift.server.comparison.words import gain, with_unit
from fedshift.server.report.figures import (
    MANY_SITES,
    PALETTE,
    is_dark,
    overlong,
    shade,
    shade_gains,
    site_names,
    to_png,
)
from fedshift.server.report.words import format_bytes

MARKERS = "os^Dv"


def draw_all(result: Result) -> dict[str, bytes]:
    """Return file name -> PNG for every figure that the comparison has the data for."""
    jobs: dict[str, Callable[[], Figure]] = {}
    if result.scored:
        jobs["heat_maps.png"] = partial(heat_maps, result)
        jobs["trade_off.png"] = partial(trade_off, result)
    if found := result.friedman:
        labels = [_line(row.label) for row in result.ranked]
        jobs["critical_difference.png"] = partial(critical_difference, found, labels)
    matrices = single_site_matrices(result)
    if matrices:
        jobs["single_site_models.png"] = partial(
            single_site_models, result.comparison.headline, matrices
        )
    found_curves = curves_of(result)
    if found_curves:
        jobs["learning_curves.png"] = partial(learning_curves, result, found_curves)
    return to_png(jobs)


def _line(text: str) -> str:
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


def _legend(figure: Figure, standings: Sequence[Standing], **line: Any) -> None:
    look = looks(standings)
    handles = [
        Line2D([], [], label=_line(row.title), **{"linestyle": "", **look[row.entrant], **line})
        for row in standings
    ]
    widest = max(len(_line(row.title)) for row in standings)
    figure.legend(
        handles=handles, loc="outside upper left", ncols=max(1, min(6, 110 // (widest + 6)))
    )


# Critical differences


def critical_difference(found: Friedman, labels: Sequence[str]) -> Figure:
    """Mean ranks on one axis, the best to the right; bars join what does not differ (Demsar 2006,
    figure 1)."""
    order = np.argsort(found.ranks, kind="stable")
    ranks = found.ranks[order]
    names = [labels[index] for index in order]
    bars = alike(found.ranks, found.critical_difference)
    entrants = len(names)
    right = (entrants + 1) // 2
    bar_space = 0.35 * len(bars) + 0.35
    depth = bar_space + right - 0.5
    figure = Figure(figsize=(8.6, 0.27 * (depth + 2.4)), layout="constrained")
    axes = figure.subplots()
    axes.axis("off")
    # Names to both sides of the axis take their room from the same scale as the ranks.
    span = entrants - 1
    axes.set_xlim(entrants + 0.62 * span, 1 - 0.62 * span)
    axes.set_ylim(depth, -2.4)
    ink = "#333333"
    axes.plot([1, entrants], [0, 0], color=ink, linewidth=1)
    for tick in range(1, entrants + 1):
        axes.plot([tick, tick], [-0.18, 0], color=ink, linewidth=1)
        axes.text(tick, -0.3, str(tick), ha="center", va="bottom", color=ink)
    reach = min(found.critical_difference, span)
    axes.plot([1, 1 + reach], [-1.45, -1.45], color=ink, linewidth=1, marker="|", markersize=6)
    more = " (wider than the axis)" if not found.can_differ else ""
    axes.text(
        1 + reach / 2,
        -1.6,
        f"critical difference {found.critical_difference:.2f}{more}",
        ha="center",
        va="bottom",
        fontsize=8.5,
    )
    for index, (name, rank) in enumerate(zip(names, ranks, strict=True)):
        best = index < right
        level = bar_space + (index if best else entrants - 1 - index)
        end = 1 - 0.08 * span if best else entrants + 0.08 * span
        axes.plot([rank, rank, end], [0, level, level], color="#888888", linewidth=0.9)
        axes.text(
            end + (-0.015 if best else 0.015) * span,
            level,
            f"{rank:.2f}  {name}" if best else f"{name}  {rank:.2f}",
            ha="left" if best else "right",
            va="center",
        )
    for index, (first, last) in enumerate(bars):
        level = 0.35 * (index + 1)
        axes.plot(
            [first - 0.01 * span, last + 0.01 * span],
            [level, level],
            color=PALETTE[0],
            linewidth=3.5,
            solid_capstyle="butt",
        )
    return figure


# Heat maps


def heat_maps(result: Result) -> Figure:
    """Entrants x sites: the headline, and beside it the gain on the baseline."""
    scored, sites, headline = result.scored, result.comparison.sites, result.comparison.headline
    at = [[result.at_site[row.entrant].get(site) for site in sites] for row in scored]
    values = np.array([[item.headline.value if item else math.nan for item in line] for line in at])
    gains = np.array(
        [[item.difference.value if item else math.nan for item in line] for line in at]
    )
    labels = [_line(row.title) for row in scored]
    names = site_names(sites, result.comparison.unseen)
    panels: list[tuple[str, np.ndarray, np.ndarray, Callable[[float], str]]]
    panels = [(headline.label, values, shade(values, headline), headline.cell)]
    if len(scored) > 1 and np.isfinite(gains).any():
        # Of a ratio the smallest gains stay pale.
        colors = shade_gains(gains, 0.1 if headline.ratio else 0.0)
        panels.append(("gain on the baseline", gains, colors, partial(gain, measure=headline)))
    many = len(sites) > MANY_SITES
    width = 0.16 if many else 0.72
    figure = Figure(
        figsize=(
            1.8 + 0.06 * max(map(len, labels)) + len(panels) * (0.4 + width * len(sites)),
            1.3 + 0.34 * len(scored) + overlong(names),
        ),
        layout="constrained",
    )
    grid = figure.subplots(1, len(panels), squeeze=False, sharey=True)[0]
    for axes, (title, values, colors, form) in zip(grid, panels, strict=True):
        axes.set_title(title)
        _heat_map(axes, values, colors, names, labels, None if many else form)
    return figure


def _heat_map(
    axes: Axes,
    values: np.ndarray,
    colors: np.ndarray,
    columns: Sequence[str],
    rows: Sequence[str],
    form: Callable[[float], str] | None,
) -> None:
    """Draw ``values`` (rows, columns), as numbers too where a format is given."""
    axes.imshow(colors, aspect="auto", interpolation="nearest")
    axes.grid(False)
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0)
    wide = form is None or max(len(line) for name in columns for line in name.split("\n")) > 9
    slant: dict[str, Any] = {"rotation": 90 if form is None else 35, "ha": "right"} if wide else {}
    if form is None:
        slant["ha"] = "center"
    axes.set_xticks(range(len(columns)), columns, **slant)
    axes.set_yticks(range(len(rows)), rows)
    if form is None:
        return
    for row, column in np.ndindex(*values.shape):
        value = float(values[row, column])
        axes.text(
            column,
            row,
            "–" if math.isnan(value) else form(value),
            ha="center",
            va="center",
            fontsize=8.5,
            color="white" if is_dark(colors[row, column]) else "black",
        )


@dataclass(frozen=True)
class SingleSiteModels:
    """The headline of an entrant's single-site models (trained_on x site), the mean over seeds and
    over parts; nan where a model was not scored."""

    label: str
    trained_on: tuple[str, ...]
    sites: tuple[str, ...]
    values: np.ndarray


def single_site_matrices(result: Result) -> list[SingleSiteModels]:
    """The matrix of every entrant whose runs hold the models of several sites, scored at several;
    none where the sites are too many to read it, or each is left out in turn."""
    comparison, found = result.comparison, []
    if comparison.in_turn or len(comparison.sites) > MANY_SITES:
        return []
    entrants = {entrant.name: entrant for entrant in comparison.entrants}
    metric = comparison.headline.name
    for row in result.scored:
        entrant = entrants[row.entrant]
        kinds = {"local": ("local",), "federated": ("personal",)}
        by_model: dict[tuple[str, str], list[float]] = defaultdict(list)
        for run in entrant.runs.values():
            for cell in run.cross_site:
                if cell["metric"] == metric and cell["model"] in kinds.get(run.main_arm, ()):
                    by_model[cell["trained_on"], cell["site"]].append(cell["mean"])
        trained_on = tuple(sorted({model for model, _ in by_model}))
        if len(trained_on) < 2 or all(model == site for model, site in by_model):
            continue
        values = np.array(
            [
                [float(np.mean(by_model.get((model, site), math.nan))) for site in comparison.sites]
                for model in trained_on
            ]
        )
        found.append(SingleSiteModels(row.label, trained_on, comparison.sites, values))
    return found


def single_site_models(headline: Measure, matrices: Sequence[SingleSiteModels]) -> Figure:
    """One heat map an entrant: what each site's own model reaches at every site."""
    first = matrices[0]
    beyond = overlong(site_names(first.sites, ()))
    width = 1.2 + 0.62 * len(first.sites) + beyond
    columns = max(1, min(len(matrices), int(10.2 / width)))
    lines = -(-len(matrices) // columns)
    figure = Figure(
        figsize=(width * columns, lines * (1.1 + 0.34 * len(first.trained_on) + beyond)),
        layout="constrained",
    )
    grid = figure.subplots(lines, columns, squeeze=False, sharex=True).ravel()
    for axes, item in zip(grid, matrices, strict=False):
        axes.set_title(_line(item.label))
        sites, homes = site_names(item.sites, ()), site_names(item.trained_on, ())
        colors = shade(item.values, headline)
        _heat_map(axes, item.values, colors, sites, homes, "{:.2f}".format)
    for axes in grid[len(matrices) :]:
        axes.set_visible(False)
    return figure


# Trade-offs


def trade_off(result: Result) -> Figure:
    """The mean over sites against the worst site and, where anything was sent, against bytes; up
    and right is better."""
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
        grid[1].xaxis.set_major_formatter(lambda value, _: format_bytes(value))
        grid[1].locator_params(axis="x", **({} if grid[1].get_xscale() == "log" else {"nbins": 5}))
        grid[1].set_xlabel("sent in a whole run, to the sites and back")
    _legend(figure, scored)
    return figure


def _cross(axes: Axes, x: Estimate, y: Estimate, color: str, marker: str) -> None:
    """A point with its intervals."""
    if x.has_interval:
        axes.plot([x.low, x.high], [y.value] * 2, color=color, linewidth=1, alpha=0.45)
    if y.has_interval:
        axes.plot([x.value] * 2, [y.low, y.high], color=color, linewidth=1, alpha=0.45)
    axes.plot([x.value], [y.value], color=color, marker=marker, markersize=7, linestyle="")


# Learning curves


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
    _legend(figure, rows, linestyle="-", markersize=4)
    return figure
