"""The figures of a comparison, in the style of the run report's."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from matplotlib.figure import Figure

from fedshift.server.comparison.figures.curves import curves_of, learning_curves, trade_off
from fedshift.server.comparison.figures.heat_maps import (
    heat_maps,
    single_site_matrices,
    single_site_models,
)
from fedshift.server.comparison.figures.looks import line_name
from fedshift.server.comparison.figures.ranks import critical_difference
from fedshift.server.comparison.ranking import Result
from fedshift.server.report.figures import to_png


def draw_all(result: Result) -> dict[str, bytes]:
    """Return file name -> PNG for every figure that the comparison has the data for."""
    jobs: dict[str, Callable[[], Figure]] = {}
    if result.scored:
        jobs["heat_maps.png"] = partial(heat_maps, result)
        jobs["trade_off.png"] = partial(trade_off, result)
    if found := result.friedman:
        labels = [line_name(row.label) for row in result.ranked]
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
