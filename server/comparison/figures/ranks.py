"""The critical-difference diagram."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure

from fedshift.server.comparison.statistics import Friedman, alike
from fedshift.server.report.figures import PALETTE


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
