"""The ranked table."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from html import escape

from fedshift.protocol.measures import Measure
from fedshift.protocol.words import count
from fedshift.server.comparison import words
from fedshift.server.comparison.ranking import Result, Standing
from fedshift.server.comparison.statistics import Estimate
from fedshift.server.comparison.words import gain
from fedshift.server.report.html import breakable, section
from fedshift.server.report.words import format_bytes


def ranked(result: Result) -> str:
    """A row an entrant, the best first."""
    rows, comparison = result.standings, result.comparison
    headline, second = comparison.headline, comparison.second
    unseen = any(row.unseen.known for row in rows)
    over = {
        "": "training sites",
        "labels": "sites, each scored by models that never saw its labels",
    }.get(comparison.in_turn, "sites, each scored by models that never saw it")
    heads = ["entrant", "mean and worst site", "mean", "worst site", "gap"]
    heads += ["unseen sites"] if unseen else []
    heads += ["gain on baseline", "p", "against baseline", "mean rank"]
    heads += [*([second.label] if second else []), "sent"]
    text = ("entrant", "mean and worst site", "against baseline")
    head = "".join(
        f'<th scope="col"{" class=text" if name in text else ""}>{escape(name)}</th>'
        for name in heads
    )
    scale = _scale(rows, headline)
    baseline = next((row for row in rows if row.outcome == "baseline"), None)
    body = ""
    for row in rows:
        place = f'<span class="place">{row.place or "–"}</span>'
        # Of one seed's models a colour would say too much.
        sure = row.outcome in ("better", "worse") and not math.isnan(row.p_seeds_holm)
        mark = row.outcome if sure else "text"
        cells = [
            f'<th scope="row">{place}{breakable(row.title)}{_seeds(row, headline)}</th>',
            f'<td class="track">{_track(row, headline, scale, baseline)}</td>',
            _value(row.mean, headline),
            _value(row.worst, headline, row.worst_site),
            _value(row.gap, headline),
            *([_value(row.unseen, headline)] if unseen else []),
            _value(
                row.difference,
                headline,
                count(row.subjects, "subject") if row.subjects else "",
                signed=True,
            ),
            _p_cell(row),
            f'<td class="name {mark}">{escape(words.outcome(row))}</td>',
            f"<td>{words.known(row.mean_rank, '{:.2f}'.format)}</td>",
            *([f"<td>{second.cell(row.second)}</td>"] if second else []),
            f"<td>{words.known(row.bytes, format_bytes)}{_spent(row)}</td>",
        ]
        body += f"<tr>{''.join(cells)}</tr>"
    intervals = "" if headline.whole else "95 % intervals over subjects, and "
    return section(
        "Ranked",
        f'<p class="lead">{escape(headline.label)} on the test split: the mean over {over}, the '
        f"worst of them, and the gap between best and worst; in small, {intervals}± the standard "
        "deviation between seeds. Dot: mean; circle: worst site; dashed: the baseline's mean; "
        "right is better. Sent: to the sites and back in a whole run, with the seconds that its "
        "rounds took.</p>"
        f'<div class="scroll"><table class="ranked"><thead><tr>{head}</tr></thead>'
        f"<tbody>{body}</tbody></table></div>",
    )


def _scale(rows: Sequence[Standing], headline: Measure) -> tuple[float, float]:
    """The worse and the better end of the tracks' axis: around all means, intervals and worst
    sites; of a ratio to the next 0.05."""
    values = [
        value
        for row in rows
        for value in (row.mean.value, row.mean.low, row.mean.high, row.worst.value)
        if not math.isnan(value)
    ]
    if not values:
        return 0.0, 1.0
    low, high = min(values), max(values)
    if headline.ratio:
        low, high = math.floor(20 * low - 0.2) / 20, math.ceil(20 * high + 0.2) / 20
    else:
        room = 0.05 * (high - low) or 1.0
        low, high = low - room, high + room
    low, high = max(low, headline.low), min(high, headline.high)
    return (low, high) if headline.better == "higher" else (high, low)


def _track(
    row: Standing, headline: Measure, scale: tuple[float, float], baseline: Standing | None
) -> str:
    """The row's mean, interval and worst site on one axis, the better to the right."""
    if not row.mean.known:
        return ""
    width, height, edge = 120, 22, 7

    def at(value: float) -> str:
        left, right = scale
        return f"{edge + (width - 2 * edge) * (value - left) / (right - left):.1f}"

    middle = height // 2
    said = f"mean {headline.said(row.mean.value)}, worst site {headline.said(row.worst.value)}"
    parts = [f'<line class="axis" x1="{edge}" x2="{width - edge}" y1="{middle}" y2="{middle}"/>']
    if baseline is not None and baseline.mean.known:
        x = at(baseline.mean.value)
        parts.append(f'<line class="reference" x1="{x}" x2="{x}" y1="0" y2="{height}"/>')
    if row.mean.has_interval:
        parts.append(
            f'<line class="span" x1="{at(row.mean.low)}" x2="{at(row.mean.high)}" '
            f'y1="{middle}" y2="{middle}"/>'
        )
    parts += [
        f'<circle class="low" cx="{at(row.worst.value)}" cy="{middle}" r="3.2"/>',
        f'<circle class="point" cx="{at(row.mean.value)}" cy="{middle}" r="4"/>',
    ]
    said = escape(said)
    return (
        f'<svg width="{width}" height="{height}" viewBox="0 0 {width} {height}" role="img" '
        f'aria-label="{said}"><title>{said}</title>{"".join(parts)}</svg>'
    )


def _value(found: Estimate, headline: Measure, note: str = "", signed: bool = False) -> str:
    if not found.known:
        return "<td>–</td>"
    form = partial(gain, measure=headline) if signed else headline.cell
    interval = f"{form(found.low)} to {form(found.high)}" if found.has_interval else ""
    small = "".join(f"<small>{escape(text)}</small>" for text in (interval, note) if text)
    return f"<td>{form(found.value)}{small}</td>"


def _spent(row: Standing) -> str:
    return "" if math.isnan(row.seconds) else f"<small>{row.seconds:.1f} s</small>"


def _p_cell(row: Standing) -> str:
    """The p-value that decides and, where there are two, both below it."""
    if row.outcome == "n too small":
        return "<td>n too small</td>"
    deciding = words.deciding_p(row)
    if math.isnan(deciding):
        return "<td>–</td>"
    small = ""
    if not math.isnan(row.p_subjects_holm + row.p_seeds_holm):
        small = (
            f"<small>subjects {escape(words.p_value(row.p_subjects_holm))}</small>"
            f"<small>seeds {escape(words.p_value(row.p_seeds_holm))}</small>"
        )
    return f"<td>{escape(words.p_value(deciding))}{small}</td>"


def _seeds(row: Standing, headline: Measure) -> str:
    spread = "" if math.isnan(row.seed_std) else f", ±{headline.cell(row.seed_std)}"
    partial = f"{row.seeds} of {row.cells} seeds"
    finished = partial if row.seeds < row.cells else count(row.seeds, "seed")
    return f"<small>{finished}{spread}</small>"
