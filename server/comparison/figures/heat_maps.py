"""Entrants or single-site models x sites."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from fedshift.protocol.measures import Measure
from fedshift.server.comparison.figures.looks import line_name
from fedshift.server.comparison.ranking import Result
from fedshift.server.comparison.words import gain
from fedshift.server.report.figures import (
    MANY_SITES,
    is_dark,
    overlong,
    shade,
    shade_gains,
    site_names,
)
from fedshift.server.tables.overview import comparable


def heat_maps(result: Result) -> Figure:
    """Entrants x sites: the headline, and beside it the gain on the baseline."""
    scored, sites, headline = result.scored, result.comparison.sites, result.comparison.headline
    at = [[result.at_site[row.entrant].get(site) for site in sites] for row in scored]
    values = np.array([[item.headline.value if item else math.nan for item in line] for line in at])
    gains = np.array(
        [[item.difference.value if item else math.nan for item in line] for line in at]
    )
    labels = [line_name(row.title) for row in scored]
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
        heat_map(axes, values, colors, names, labels, None if many else form)
    return figure


def heat_map(
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
    over the parts that compare; nan where a model was not scored on them."""

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
    for row in result.scored:
        entrant = entrants[row.entrant]
        kinds = {"local": ("local",), "federated": ("personal",)}
        by_model: dict[tuple[str, str], list[float]] = defaultdict(list)
        for run in entrant.runs.values():
            for cell in comparable(run.cross_site, comparison.headline):
                if cell["model"] in kinds.get(run.main_arm, ()):
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
        axes.set_title(line_name(item.label))
        sites, homes = site_names(item.sites, ()), site_names(item.trained_on, ())
        colors = shade(item.values, headline)
        cell = "{:.2f}".format if headline.ratio else headline.cell
        heat_map(axes, item.values, colors, sites, homes, cell)
    for axes in grid[len(matrices) :]:
        axes.set_visible(False)
    return figure
