"""The figures of a run, drawn without pyplot so that no global state is read or left behind.

Colours are from Okabe and Ito's palette (distinct in the common colour-vision deficiencies); heat
maps use YlGnBu, whose lightness is monotonic. Beyond ``MANY_SITES`` sites the figures show
summaries over sites instead of one mark a site.
"""

from __future__ import annotations

import io
import threading
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import partial
from textwrap import fill
from typing import Any, Literal

import matplotlib as mpl
import numpy as np
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from fedshift.protocol.measures import Measure
from fedshift.protocol.words import count, short, some
from fedshift.server.report.matrix import Matrix
from fedshift.server.report.run import Run
from fedshift.server.report.words import format_bytes, shift_label, time_unit
from fedshift.server.tables.overview import comparable

MANY_SITES = 12
LISTED_SITES = 60
"""Of more sites than this neither page nor figures show them one by one."""
HEAT_MAPS = 4
"""So many measures are drawn, of those with a better direction the first."""

ARMS: dict[str, tuple[str, Literal["-", "--"], str]] = {
    "federated": ("#0072B2", "-", "federated"),
    "local": ("#D55E00", "-", "the site's own model"),
    "pooled": ("#4d4d4d", "--", "pooled (upper bound)"),
}
PALETTE = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#F0E442", "#000000")
TIMELINE_ROUNDS = 8
TIMELINE = {
    "download": ("#56B4E9", None),
    "training": ("#0072B2", None),
    "upload": ("#E69F00", None),
    "too late": ("#f3d9d0", "////"),
    "away": ("#d0d0d0", None),
}
"""What a site does in simulated time: colour and hatching."""
STYLE: dict[str, Any] = {
    "font.family": "DejaVu Sans",
    "font.size": 9.5,
    "axes.titlesize": 10,
    "axes.titlelocation": "left",
    "axes.labelcolor": "#333333",
    "axes.edgecolor": "#999999",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#e8e8e8",
    "legend.frameon": False,
    "lines.linewidth": 1.8,
    "text.color": "#222222",
    "text.parse_math": False,
    "xtick.color": "#444444",
    "ytick.color": "#444444",
    "figure.facecolor": "white",
    "savefig.dpi": 150,
}
"""Settings on top of matplotlib's own defaults. Site names are data: ``$`` is no markup."""

_DRAWING = threading.Lock()


def draw_all(run: Run) -> dict[str, bytes]:
    """Return file name -> PNG for every figure that the run has the data for."""
    jobs: dict[str, Callable[[], Figure]] = {
        f"cross_site_{measure.name}.png": partial(heat_map, run, measure)
        for measure in [item for item in run.measures if item.better][:HEAT_MAPS]
    }
    if run.rounds:
        jobs["curves.png"] = partial(curves, run)
    if run.simulated:
        jobs["timeline.png"] = partial(timeline, run)
    if run.correlations:
        jobs["shift_drop.png"] = partial(shift_drop, run)
    if run.egress:
        jobs["egress.png"] = partial(egress, run)
    return to_png(jobs)


def to_png(jobs: Mapping[str, Callable[[], Figure]]) -> dict[str, bytes]:
    """Call each to draw its figure in the pages' style; return the PNG files' bytes by name."""
    style: dict[Any, Any] = {**mpl.rcParamsDefault}
    # The style is set for the whole process, in which several runs may end at once.
    with _DRAWING, mpl.rc_context(style | STYLE):
        return {name: _png(draw()) for name, draw in jobs.items()}


def shade(values: np.ndarray, measure: Measure) -> np.ndarray:
    """Return RGBA in 0..1 for ``values`` of any shape; darker is better, nan is light grey.

    Colours run between the measure's bounds, or to the farthest value where it has none. What has
    no better direction is shaded by its distance from 0 where it may be negative, such as an error
    with a sign, and hardly at all otherwise.
    """
    finite = values[np.isfinite(values)]
    if not measure.better:
        top = float(np.abs(finite).max(initial=0)) or 1.0
        if measure.low < 0:
            return _diverging(values, top)
        return _colors(values, "Greys", Normalize(-9 * top, 90 * top))
    ends = (finite.min(), finite.max()) if finite.size else (0.0, 1.0)
    bounds = (measure.low, measure.high)
    low, high = (
        bound if np.isfinite(bound) else end for bound, end in zip(bounds, ends, strict=True)
    )
    name = "YlGnBu" if measure.better == "higher" else "YlGnBu_r"
    return _colors(values, name, Normalize(low, high if high > low else low + 1))


def shade_gains(values: np.ndarray, least: float) -> np.ndarray:
    """As :func:`shade` for differences: 0 is pale, and the scale goes to ``least`` at least."""
    finite = values[np.isfinite(values)]
    return _diverging(values, max(float(np.abs(finite).max(initial=0)), least))


def _diverging(values: np.ndarray, top: float) -> np.ndarray:
    # The middle of a diverging map is its zero.
    return _colors(values, "PuOr", Normalize(-top, top), start=0.09)


def _colors(values: np.ndarray, name: str, norm: Normalize, start: float = 0.06) -> np.ndarray:
    # The ends of the map are left out: nearly white and nearly black cells hide their numbers.
    colors = mpl.colormaps[name](start + 0.82 * norm(np.nan_to_num(values)))
    colors[~np.isfinite(values)] = (0.93, 0.93, 0.93, 1.0)
    return np.asarray(colors)


def hex_color(rgba: np.ndarray) -> str:
    """``#rrggbb`` for one colour of :func:`shade`."""
    return "#" + "".join(f"{round(255 * float(channel)):02x}" for channel in rgba[:3])


def is_dark(rgba: np.ndarray) -> bool:
    """Say whether white text reads better than black on this colour (WCAG relative luminance)."""
    channels = np.where(rgba[:3] <= 0.03928, rgba[:3] / 12.92, ((rgba[:3] + 0.055) / 1.055) ** 2.4)
    return bool(channels @ (0.2126, 0.7152, 0.0722) < 0.179)


def heat_map(run: Run, measure: Measure) -> Figure:
    """Models x sites; numbers in the cells unless there are more than ``MANY_SITES`` sites. Of more
    than ``LISTED_SITES`` the means over those of each vendor, where vendors are few."""
    matrix = run.matrix(measure)
    names = site_names(matrix.sites, run.unseen)
    labels = [short(run.label(model)) for model in matrix.models]
    mean, groups = matrix.mean, vendor_groups(run)
    if groups:
        names, labels, mean = _grouped(run, matrix, groups)
    rows, columns = mean.shape
    many = columns > MANY_SITES
    size = (8.0, 8.0) if many else (2.6 + 0.95 * columns, 1.5 + 0.36 * rows + overlong(names))
    figure = Figure(figsize=size, layout="constrained")
    axes = figure.subplots()
    colors = shade(mean, measure)
    axes.imshow(colors, aspect="auto", interpolation="nearest")
    axes.grid(False)
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0)
    if many:
        axes.set_xticks(*_thinned(names), rotation=90)
        axes.set_yticks(*_thinned(labels))
    else:
        # Slanted when a name is wider than its column.
        wide = max(len(line) for name in names for line in name.split("\n")) > 12
        slant: dict[str, Any] = {"rotation": 30, "ha": "right"} if wide else {}
        axes.set_xticks(range(columns), names, **slant)
        axes.set_yticks(range(rows), labels)
        for row, column in np.ndindex(rows, columns):
            axes.text(
                column,
                row,
                measure.cell(float(mean[row, column])),
                ha="center",
                va="center",
                color="white" if is_dark(colors[row, column]) else "black",
            )
    figure.suptitle(
        f"{measure.label}: "
        + ("means over the models and the sites of each vendor" if groups else "each model (row)")
        + ("\n" if groups else " at each site (column)\n")
        + f"test split{_part_words(run, measure)}"
        + ("; every model trained without the column's site" if run.in_turn else "")
        + {"vendor": "'s vendor", "labels": "'s labels"}.get(run.in_turn, ""),
        x=0.01,
        ha="left",
        fontsize=10,
    )
    return figure


def vendor_groups(run: Run) -> dict[str, list[str]]:
    """The scored sites by vendor, and the unseen ones apart, where the sites are too many to show
    one by one and the groups few enough; else empty."""
    if len(run.vendors) <= LISTED_SITES:
        return {}
    found: dict[str, list[str]] = {}
    for site, vendor in sorted(run.vendors.items()):
        unseen = "\n(unseen)" if site in run.unseen else ""
        found.setdefault(f"{short(vendor, 24) or 'unknown'}{unseen}", []).append(site)
    return dict(sorted(found.items())) if 1 < len(found) <= MANY_SITES else {}


def _grouped(
    run: Run, matrix: Matrix, groups: Mapping[str, Sequence[str]]
) -> tuple[list[str], list[str], np.ndarray]:
    """Columns, rows and means of the matrix by vendor: single-site models by their site's, each at
    the other sites; the models at home have a row of their own."""
    home_of = {site: name.split("\n")[0] for name, sites in groups.items() for site in sites}
    away = np.where(matrix.home, np.nan, matrix.mean)
    rows: dict[str, list[int]] = {}
    at_home: dict[str, list[int]] = {}
    for index, (model, trained_on) in enumerate(matrix.models):
        vendor = home_of.get(trained_on)
        if vendor is None:
            rows.setdefault(short(run.label((model, trained_on))), []).append(index)
            continue
        at_home.setdefault(f"{model}, at home", []).append(index)
        if np.isfinite(away[index]).any():
            rows.setdefault(f"{model}, {vendor}", []).append(index)
    places = [[matrix.sites.index(site) for site in sites] for sites in groups.values()]
    at_own = np.where(matrix.home, matrix.mean, np.nan)
    shown = {label: at_own[indices] for label, indices in at_home.items()}
    for label, indices in rows.items():
        single = matrix.models[indices[0]][1] in home_of
        shown[label] = (away if single else matrix.mean)[indices]
    means = [[_mean_known(values[:, place]) for place in places] for values in shown.values()]
    return list(groups), list(shown), np.array(means)


def _mean_known(values: np.ndarray) -> float:
    known = values[np.isfinite(values)]
    return float(known.mean()) if known.size else np.nan


def site_names(sites: Sequence[str], unseen: Collection[str]) -> list[str]:
    """The sites' names as a heat map's columns have room for them."""
    return [f"{short(s, 24)}\n(unseen)" if s in unseen else short(s, 24) for s in sites]


def overlong(names: Sequence[str], room: int = 12) -> float:
    """The inches that slanted names take beyond those of ``room`` letters."""
    longest = max((len(line) for name in names for line in name.split("\n")), default=0)
    return 0.06 * max(0, longest - room)


_TITLE = 40
"""Letters that a curve's title has room for."""


def curves(run: Run) -> Figure:
    """The validated headline and training loss by round: means over sites, then a panel a site."""
    rounds = [line["round"] for line in run.rounds]
    reached = run.validation
    loss = {arm: run.curve("loss", arm) for arm in ARMS}
    sites = sorted(reached["federated"] | reached["local"])
    panels = sites if 1 < len(sites) <= MANY_SITES else []
    validated = any(reached.values())
    columns = min(3, 1 + validated + bool(panels))
    lines = -(-(1 + validated + len(panels)) // columns)
    figure = Figure(figsize=(3.4 * columns, 2.5 * lines + 0.5), layout="constrained")
    grid = figure.subplots(lines, columns, squeeze=False).ravel()
    band = "" if panels or len(sites) < 2 else " (band: lowest to highest site)"
    what = f"validation {run.headline.title}" if validated else ""
    means = [(reached, f"{what}, mean of {count(len(sites), 'site')}{band}")]
    means = [*(means if validated else []), (loss, f"training loss, mean{band}")]
    for axes, (data, title) in zip(grid, means, strict=False):
        told = [fill(line, _TITLE) for line in title.split(" (", 1)]
        axes.set_title("\n".join(told).replace("band:", "(band:"))
        for arm, (color, dash, _) in ARMS.items():
            if not data[arm]:
                continue
            values = np.stack(list(data[arm].values()))
            axes.plot(rounds, _nan_mean(values), dash, color=color, **_marker(rounds))
            if band and len(values) > 1:
                low = np.where(np.isnan(values), np.inf, values).min(axis=0)
                high = np.where(np.isnan(values), -np.inf, values).max(axis=0)
                shown = np.isfinite(low)
                axes.fill_between(
                    rounds, low, high, where=shown, color=color, alpha=0.15, linewidth=0
                )
    for axes, site in zip(grid[2:], panels, strict=False):
        axes.set_title(fill(f"{short(site)}: {what}", _TITLE))
        for arm, (color, dash, _) in ARMS.items():
            if site in reached[arm]:
                axes.plot(rounds, reached[arm][site], dash, color=color, **_marker(rounds))
    for axes in (grid[0], *grid[2:]) if validated else ():
        axes.set_ylim(*_limits(run.headline, reached))
        axes.set_ylabel(run.headline.unit)
    for index, axes in enumerate(grid):
        axes.xaxis.get_major_locator().set_params(integer=True)
        if len(rounds) == 1:  # Around one round there is no other whole number.
            axes.set_xticks(rounds)
        if index + columns >= len(means) + len(panels):  # Nothing is drawn below.
            axes.set_xlabel("round")
    for axes in grid[len(means) + len(panels) :]:
        axes.set_visible(False)
    handles = [
        Line2D([], [], color=color, linestyle=dash, label=label)
        for arm, (color, dash, label) in ARMS.items()
        if reached[arm] or loss[arm]
    ]
    figure.legend(handles=handles, loc="outside upper left", ncols=3)
    return figure


def _limits(
    measure: Measure, reached: Mapping[str, Mapping[str, np.ndarray]]
) -> tuple[float, float]:
    """The ends of an axis for all that arms reached: the measure's bounds, else just outside."""
    values = np.concatenate([curve for arm in reached.values() for curve in arm.values()])
    low, high = np.nanmin(values), np.nanmax(values)
    bottom = measure.low if np.isfinite(measure.low) else low
    top = measure.high if np.isfinite(measure.high) else high
    room = 0.05 * (top - bottom) or 0.5
    return (
        bottom if np.isfinite(measure.low) else low - room,
        top if np.isfinite(measure.high) else high + room,
    )


def timeline(run: Run) -> Figure:
    """Who did what in simulated time in the first rounds; of many sites the slowest."""
    lines = run.rounds[:TIMELINE_ROUNDS]
    limit = lines[-1]["clock_s"]
    unit, size = time_unit(limit)
    slowest: dict[str, float] = {}
    for line in run.rounds:
        taken = {name: site.get("simulated_s", 0.0) for name, site in line["sites"].items()}
        for name, seconds in {**dict.fromkeys(line["dropouts"], 0.0), **taken}.items():
            slowest[name] = max(slowest.get(name, 0.0), seconds)
        for name, seconds in line["stragglers"].items():
            slowest[name] = max(slowest.get(name, 0.0), seconds)
    named = sorted(sorted(slowest, key=lambda name: -slowest[name])[:MANY_SITES])
    row_of = {name: row for row, name in enumerate(named)}
    bars: dict[str, list[tuple[int, float, float]]] = {name: [] for name in TIMELINE}
    start = 0.0
    for line in run.rounds:
        for name, site in line["sites"].items():
            begun = site.get("simulated_start_s", limit)
            if name not in row_of or begun >= limit:
                continue
            down, up = site["download_s"], site["upload_s"]
            training = site["simulated_s"] - down - up
            for part, length in (("download", down), ("training", training), ("upload", up)):
                bars[part].append((row_of[name], begun, length))
                begun += length
        if start < limit:
            for part, names in (("too late", line["stragglers"]), ("away", line["dropouts"])):
                length = line["clock_s"] - start
                bars[part] += [(row_of[name], start, length) for name in names if name in row_of]
        start = line["clock_s"]
    figure = Figure(figsize=(10.2, 1.5 + 0.3 * len(named)), layout="constrained")
    axes = figure.subplots()
    for part, (color, hatch) in TIMELINE.items():
        if bars[part]:
            rows, lefts, lengths = zip(*bars[part], strict=True)
            axes.barh(
                rows,
                np.array(lengths) / size,
                left=np.array(lefts) / size,
                height=0.3 if part == "away" else 0.7,
                color=color,
                hatch=hatch,
                edgecolor="#777777" if hatch else color,
                linewidth=0,
                label=part,
            )
    ends = [line["clock_s"] / size for line in lines]
    axes.vlines(ends, -0.5, len(named) - 0.5, colors="#222222", linewidth=0.9, label="end of round")
    axes.set_yticks(range(len(named)), list(map(short, named)))
    axes.set_xlim(0, limit / size)
    axes.invert_yaxis()
    axes.grid(False, axis="y")
    axes.set_xlabel(f"simulated time ({unit})")
    if len(named) < len(slowest):
        axes.set_title(f"the {len(named)} slowest of {len(slowest)} sites")
    figure.legend(loc="outside upper left", ncols=6, handlelength=1.2)
    return figure


def shift_drop(run: Run) -> Figure:
    """Each shift metric against the drop in the headline, over ordered pairs of sites."""
    columns = min(3, len(run.correlations))
    lines = -(-len(run.correlations) // columns)
    figure = Figure(figsize=(3.4 * columns, 2.7 * lines + 0.6), layout="constrained")
    grid = figure.subplots(lines, columns, squeeze=False, sharey=True).ravel()
    pairs = {found.metric: run.pairs(found.metric) for found in run.correlations}
    homes = sorted({pair.home for found in pairs.values() for pair in found})
    few = len(homes) <= len(PALETTE)
    color_of = {home: PALETTE[index] if few else PALETTE[0] for index, home in enumerate(homes)}
    for axes, found in zip(grid, run.correlations, strict=False):
        shown = pairs[found.metric]
        # Of two pairs, or of equal ones, there is no correlation.
        told = f"ρ = {found.rho:.2f}, p = {found.p_value:.3f}, " if found.rho == found.rho else ""
        axes.set_title(f"{shift_label(found.metric)}\n{told}{found.n_pairs} pairs")
        axes.axhline(0, color="#999999", linewidth=0.8)
        axes.scatter(
            [pair.shift for pair in shown],
            [pair.drop for pair in shown],
            s=34 if few else 6,
            c=[color_of[pair.home] for pair in shown],
            alpha=0.9 if few else 0.3,
            edgecolors="white" if few else "none",
            linewidths=0.6,
        )
        axes.set_xlabel("shift between the two sites")
        axes.locator_params(axis="x", nbins=4)
    for axes in grid[::columns]:
        axes.set_ylabel(run.headline.worsening)
    for axes in grid[len(run.correlations) :]:
        axes.set_visible(False)
    if few:
        handles = [
            Line2D([], [], color=color, marker="o", linestyle="", label=short(home))
            for home, color in color_of.items()
        ]
        figure.legend(
            handles=handles,
            loc="outside upper left",
            ncols=min(4, len(homes)),
            title="model trained at",
            alignment="left",
        )
    return figure


def egress(run: Run) -> Figure:
    """Bytes that left, by site and purpose; beyond ``MANY_SITES`` sites by purpose alone."""
    purposes = sorted({purpose for sent in run.egress.values() for purpose in sent})
    by_site = len(run.egress) <= MANY_SITES
    # By their places, as two long names may look alike.
    names = [short(name) for name in (sorted(run.egress) if by_site else purposes)]
    places = range(len(names))
    figure = Figure(figsize=(10.2, 1.3 + 0.3 * len(names)), layout="constrained")
    axes = figure.subplots()
    amounts = np.array(
        [
            [run.egress[site][p].bytes if p in run.egress[site] else 0 for p in purposes]
            for site in sorted(run.egress)
        ],
        dtype=float,
    )
    if by_site:
        left = np.zeros(len(names))
        for index, purpose in enumerate(purposes):
            color = PALETTE[index % len(PALETTE)]
            axes.barh(places, amounts[:, index], left=left, color=color, label=purpose, height=0.7)
            left += amounts[:, index]
        figure.legend(loc="outside upper left", ncols=3, handlelength=1.0)
        totals, end = amounts.sum(axis=1), left
    else:
        totals = end = amounts.sum(axis=0)
        axes.barh(places, totals, color=PALETTE[0], height=0.7)
        axes.set_title(f"{len(run.egress)} sites together, by purpose")
    axes.set_yticks(places, names)
    for index, total in enumerate(totals):
        axes.annotate(
            format_bytes(total),
            (end[index], index),
            (4, 0),
            textcoords="offset points",
            va="center",
        )
    axes.set_xlim(0, 1.12 * max(float(end.max()), 1.0))
    axes.xaxis.set_major_formatter(lambda value, _: format_bytes(value))
    axes.invert_yaxis()
    axes.grid(False, axis="y")
    axes.set_xlabel("left the site, whole run")
    return figure


def _png(figure: Figure) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", metadata={"Software": None})
    return buffer.getvalue()


def _thinned(labels: Sequence[str]) -> tuple[list[int], list[str]]:
    """Positions and texts of at most about 33 evenly spaced labels."""
    step = -(-len(labels) // 33)
    positions = list(range(0, len(labels), step))
    return positions, [labels[index].replace("\n", " ") for index in positions]


def _marker(rounds: Sequence[int]) -> dict[str, Any]:
    """A single round is a point, not a line."""
    return {"marker": "o"} if len(rounds) == 1 else {}


def _nan_mean(values: np.ndarray) -> np.ndarray:
    count = (~np.isnan(values)).sum(axis=0)
    return np.divide(
        np.nansum(values, axis=0), count, out=np.full(count.shape, np.nan), where=count > 0
    )


def _part_words(run: Run, measure: Measure) -> str:
    if not run.part_name:
        return ""
    names = some([short(name) for name in run.parts])
    count: dict[str, set[str]] = {}
    for row in comparable(run.scores, measure):
        count.setdefault(row["site"], set()).add(row["part"])
    if any(parts != set(run.parts) for parts in count.values()):
        return f"\nmean of those of {names} that count at the site"
    return f", {'mean of ' if len(run.parts) > 1 else ''}{names}"
