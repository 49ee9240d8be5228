"""The page of a comparison: one HTML file that opens offline, in the style of the run report."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import partial
from html import escape
from importlib.resources import files

import numpy as np

from fedshift.protocol.measures import Measure
from fedshift.protocol.words import count, some
from fedshift.server.comparison import words
from fedshift.server.comparison.ranking import Result, Standing
from fedshift.server.comparison.statistics import DRAWS, FEWEST_PAIRS, PERMUTATIONS, Estimate
from fedshift.server.comparison.words import gain, p_words, sentences, time_words
from fedshift.server.report.figures import MANY_SITES, shade
from fedshift.server.report.html import document, figure, section, shaded
from fedshift.server.report.words import format_bytes

FEW_SUBJECTS = 10
"""At a site with fewer test subjects a bootstrap interval comes out too narrow."""
MAX_CELLS = 40


def page(result: Result, figures: Mapping[str, bytes]) -> str:
    """Return the whole page; a part without data is left out."""
    sections = (
        _notes(result),
        _ranked(result),
        _at_sites(result),
        _critical_difference(result, figures),
        _trade_off(result, figures),
        _training(result, figures),
        _single_site_models(result, figures),
        _cells(result),
        _reading(result),
        _settings(result),
    )
    style = files("fedshift.server.comparison").joinpath("page.css").read_text(encoding="utf-8")
    return document(_title(result), _facts(result), _headline(result), sections, style)


def _axes(result: Result) -> dict[str, list[str]]:
    """Every axis of the grid but the seed, with its values."""
    axes: dict[str, dict[str, None]] = {}
    for entrant in result.comparison.entrants:
        for key, value in entrant.settings.items():
            axes.setdefault(key, {})[value] = None
    return {key: list(values) for key, values in axes.items()}


def _title(result: Result) -> str:
    compared = [key for key, values in _axes(result).items() if len(values) > 1]
    names = {"strategy": "strategies", "method": "methods"}
    what = " and ".join(names.get(key, f"values of {key}") for key in compared)
    run = result.comparison.first_run
    where = f" on {run.setting('federation')}" if run else ""
    return f"Comparison of {what}{where}" if what else f"Comparison{where}"


def _facts(result: Result) -> str:
    comparison = result.comparison
    seeds = sorted({cell.seed for cell in comparison.cells})
    facts = [
        count(len(comparison.entrants), "entrant"),
        f"{count(len(seeds), 'seed')} ({', '.join(seeds)})" if seeds != [""] else "one seed",
    ]
    if comparison.in_turn:
        each = "without labels" if comparison.in_turn == "labels" else "left out"
        facts.append(f"{count(len(comparison.trained), 'site')}, each {each} in turn")
    else:
        unseen = f" and {len(comparison.unseen)} unseen" if comparison.unseen else ""
        facts.append(count(len(comparison.trained), "training site") + unseen)
    if run := comparison.first_run:
        facts += [
            count(run.config[key], noun)
            for key, noun in (("rounds", "round"), ("local_steps", "local step"))
            if key in run.config and key not in _axes(result)
        ]
    return escape(" · ".join(facts))


def _headline(result: Result) -> str:
    # "p = 0.01" stays on one line.
    said = [
        text.replace("p = ", "p\u00a0=\u00a0").replace("p < ", "p\u00a0<\u00a0")
        for text in sentences(result.standings, result.comparison.headline)
    ]
    first, *rest = map(escape, said)
    more = f"<p>{' '.join(rest)}</p>" if rest else ""
    return f'<p class="answer">{first}</p>{more}'


def _notes(result: Result) -> str:
    """What a reader must know before the numbers."""
    said = []
    comparison = result.comparison
    few = sorted(
        {
            site
            for found in result.at_site.values()
            for site, item in found.items()
            if 0 < item.subjects < FEW_SUBJECTS
        }
    )
    if few:
        said.append(
            f"Fewer than {FEW_SUBJECTS} test subjects at {escape(some(few))}: intervals over "
            "so few come out too narrow."
        )
    if comparison.headline.whole:
        said.append(
            f"{escape(comparison.headline.label)} is measured of a site's whole test split, so no "
            "subject has one: there are no intervals over subjects, and gains are tested over "
            "seeds alone."
        )
    run = comparison.first_run
    hidden = sorted(run.unlabelled - run.unseen) if run and not comparison.in_turn else []
    if hidden:
        said.append(
            f"{escape(some(hidden))} {'trains' if len(hidden) == 1 else 'train'} without "
            "labels; the scores there are on labels that only the evaluation sees."
        )
    partial = [row for row in result.scored if row.seeds < row.cells]
    if partial:
        said.append(
            f"Not every seed is finished for {escape(some([row.label for row in partial]))}: "
            "their means are over fewer runs. Gains and tests use only what both sides have."
        )
    for row in result.standings:
        missing = [site for site in comparison.trained if site not in result.at_site[row.entrant]]
        if missing and row.seeds:
            said.append(
                f"{escape(row.label)} has no place: it was not scored at {escape(some(missing))}."
            )
    if result.scored and all(row.shared_seeds < 2 for row in result.scored):
        so = (
            "nothing can be tested"
            if comparison.headline.whole
            else "the tests speak of these trained models: another seed could move them"
        )
        said.append(
            f"With one seed in common {so}. Add seeds (<code>seed=0,1,2</code>) to test that too."
        )
    if any(row.failed for row in result.standings):
        said.append('Some cells failed, <a href="#cells">listed below</a>.')
    if not said:
        return ""
    items = "".join(f"<li>{sentence}</li>" for sentence in said)
    return f'<div class="note"><p>Before reading the numbers</p><ul>{items}</ul></div>'


# The ranked table


def _ranked(result: Result) -> str:
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
            f'<th scope="row">{place}{_name(row)}{_seeds(row, headline)}</th>',
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


def _name(row: Standing) -> str:
    """A title that may be broken after an underscore."""
    return escape(row.title).replace("_", "_<wbr>")


def _seeds(row: Standing, headline: Measure) -> str:
    spread = "" if math.isnan(row.seed_std) else f", ±{headline.cell(row.seed_std)}"
    partial = f"{row.seeds} of {row.cells} seeds"
    finished = partial if row.seeds < row.cells else count(row.seeds, "seed")
    return f"<small>{finished}{spread}</small>"


# Each site


def _at_sites(result: Result) -> str:
    """Entrants x sites, the headline with the gain below; a picture where the sites are many."""
    comparison = result.comparison
    headline = comparison.headline
    if not result.scored or len(comparison.sites) > MANY_SITES:
        return ""
    at = [
        [result.at_site[row.entrant].get(site) for site in comparison.sites]
        for row in result.scored
    ]
    values = np.array([[item.headline.value if item else math.nan for item in line] for line in at])
    bounds = np.array([row.upper_bound for row in result.scored])  # They do not compete.
    competing = np.where(np.isnan(values) | bounds[:, None], -math.inf, headline.sign * values)
    best = (competing == competing.max(axis=0)) & np.isfinite(competing)
    head = ""
    for site in comparison.sites:
        vendor = comparison.vendors.get(site, "")
        notes = [vendor] if vendor not in ("", site) else []
        notes += ["unseen"] if site in comparison.unseen else []
        small = "".join(f"<small>{escape(note)}</small>" for note in notes)
        head += f'<th scope="col" class="site">{escape(site)}{small}</th>'
    body = ""
    for row, line, colors, top in zip(
        result.scored, at, shade(values, headline), best, strict=True
    ):
        cells = ""
        for item, color, first in zip(line, colors, top, strict=True):
            if item is None:
                cells += '<td class="cell">–</td>'
                continue
            number = headline.cell(item.headline.value)
            number = f'<span class="best">{number}</span>' if first else number
            gained = gain(item.difference.value, headline)
            small = f"<small>{gained}</small>" if item.difference.known else ""
            hint = count(item.subjects, "subject") if item.subjects else "the whole split"
            if item.headline.has_interval:
                low, high = headline.cell(item.headline.low), headline.cell(item.headline.high)
                hint += f", 95 % interval {low} to {high}"
            if item.difference.has_interval:
                hint += f"; gain {words.gain_interval(item.difference, headline)}"
            cells += f'<td {shaded(color)} title="{hint}">{number}{small}</td>'
        body += f'<tr><th scope="row">{_name(row)}</th>{cells}</tr>'
    return section(
        "At each site",
        f'<p class="lead">{escape(headline.label)} of what each entrant gives the site, and in '
        "small the gain on the baseline there. Underlined: the best of a column, an upper bound "
        "aside. Point at a cell for its number of subjects and intervals; no cell is tested on its "
        "own. Darker is better.</p>"
        '<div class="scroll"><table class="heat sites"><thead><tr>'
        f'<th scope="col" class="text">entrant</th>{head}</tr></thead><tbody>{body}</tbody>'
        "</table></div>",
    )


def _critical_difference(result: Result, figures: Mapping[str, bytes]) -> str:
    title, name = "Over sites", "critical_difference.png"
    found = result.friedman
    if found is None:
        ranked, sites = len(result.ranked), len(result.comparison.trained)
        return section(
            title,
            "<p>A critical-difference diagram takes three entrants and two sites; here "
            f"{'is' if ranked == 1 else 'are'} {count(ranked, 'ranked entrant')} and "
            f"{count(sites, 'site')}.</p>",
        )
    differ = "do not all rank alike" if found.p_value < 0.05 else "are not shown to rank unlike"
    few = (
        ""
        if found.can_differ
        else " So few sites cannot tell any two entrants apart by rank: the critical difference "
        "is wider than the axis."
    )
    return section(
        title,
        f'<p class="lead">The entrants ranked at each of {count(found.sites, "site")}. Over them '
        f"they {differ} (Friedman, {p_words(found.p_value)} by permutation); a bar joins entrants "
        f"whose mean ranks lie less than Nemenyi's critical difference apart.{few}</p>"
        + figure(figures[name], name),
    )


def _trade_off(result: Result, figures: Mapping[str, bytes]) -> str:
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


def _training(result: Result, figures: Mapping[str, bytes]) -> str:
    name = "learning_curves.png"
    if name not in figures:
        return ""
    headline = result.comparison.headline
    timed = sorted(
        (row for row in result.standings if not math.isnan(row.at_hours)),
        key=lambda row: -headline.sign * row.at_hours,
    )
    ranking = ""
    if timed:
        lines = "".join(
            f'<tr><td>{place}</td><th scope="row">{_name(row)}</th>'
            f"<td>{headline.cell(row.at_hours)}</td></tr>"
            for place, row in enumerate(timed, start=1)
        )
        ranking = (
            f"<h3>After {time_words(timed[0].hours)} of simulated time</h3>"
            '<div class="scroll"><table><thead><tr><th></th><th scope="col" class="text">entrant'
            f'</th><th scope="col">validation {escape(headline.title)}</th></tr></thead>'
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


def _single_site_models(result: Result, figures: Mapping[str, bytes]) -> str:
    name = "single_site_models.png"
    if name not in figures:
        return ""
    return section(
        "How far the sites' own models travel",
        figure(
            figures[name],
            name,
            f"{result.comparison.headline.label}, for the entrants that train or keep a model for "
            "each site. A row is the site whose model it is, a column the site that it is scored "
            "at; the mean over seeds.",
        ),
    )


# What failed, how to read it, what was run


def _cells(result: Result) -> str:
    cells = result.comparison.cells
    failed = [cell for cell in cells if cell.status == "failed"]
    left = [cell for cell in cells if cell.status == "left"]
    if not failed and not left:
        return ""
    parts = [
        f"{len(found)} {word}" for found, word in ((failed, "failed"), (left, "left")) if found
    ]
    lines = "".join(
        f'<tr><th scope="row">{escape(cell.entrant or "the only entrant")}</th>'
        f'<td>{escape(cell.seed) or "–"}</td><td class="text">{cell.status}</td>'
        f'<td class="text">{escape(cell.error) or "not run yet"}</td></tr>'
        for cell in [*failed, *left][:MAX_CELLS]
    )
    more = len(failed) + len(left) - MAX_CELLS
    rest = f"<p>and {more} more.</p>" if more > 0 else ""
    return section(
        "Cells without a result",
        f'<p class="lead">Of {count(len(cells), "cell")}, {" and ".join(parts)}. The same command '
        "tries them again; finished cells stay.</p>"
        '<div class="scroll"><table><thead><tr><th scope="col" class="text">entrant</th>'
        '<th scope="col">seed</th><th scope="col" class="text">state</th>'
        f'<th scope="col" class="text">reason</th></tr></thead><tbody>{lines}</tbody></table></div>'
        f"{rest}",
        "cells",
    )


_READING_BY_SUBJECTS = (
    (
        "Intervals",
        f"95 % percentile intervals of {DRAWS} bootstrap draws of subjects within each site, "
        "the trained models held fixed. Those of worst site and gap hold the named sites "
        "fixed.",
    ),
    (
        "p, subjects",
        "Wilcoxon's signed-rank test of the gain on the baseline over the subjects of the "
        "ranking sites, each paired with itself in the same seeds. Subjects without a "
        f"difference are dropped; fewer than {FEWEST_PAIRS} are too few to test.",
    ),
)


def _reading(result: Result) -> str:
    given = {
        "": "a training site is given its own model where the strategy keeps or trains one for it, "
        "and the shared model otherwise; an unseen site, or one without labels, is given "
        "the shared model or, of local training, the mean score of the sites' models",
        "labels": "a site is given its own model where one was trained without its labels, and the "
        "shared one otherwise",
    }.get(
        result.comparison.in_turn,
        "a site is given the shared model that was trained without it or, of local training, the "
        "mean score of the other sites' models",
    )
    task = result.comparison.task
    headline, parts = task.headline, f"over {task.part}s and " if task.part else ""
    by_subjects: tuple[tuple[str, str], ...] = ()
    if headline.whole:
        value = f"A site's value is of its whole test split, the mean {parts}over the seeds"
        below, one_seed = "The test is below", "It takes two seeds."
    else:
        value = f"A subject's value is the mean over its cases, then {parts}over the seeds that "
        value += "tested it; a site's is the mean over its subjects"
        by_subjects, below = _READING_BY_SUBJECTS, "Both tests are below"
        one_seed = "With one seed the first stands alone, and the table says so."
    terms = (
        (
            "Entrant",
            f"The runs that differ in the seed alone. What it gives a site: {given}.",
        ),
        (headline.label, f"{value}, and the mean over sites counts each site once."),
        *by_subjects,
        (
            "p, seeds",
            "Whether the gain is larger than what training again moves: a t-test of the means with "
            "seeds as blocks, over the seeds that all entrants share, two or more.",
        ),
        (
            "better, worse",
            f"{below} 0.05 after Holm's correction over all entrants. {one_seed} Anything else is "
            "not shown, which is not the same as equal.",
        ),
        (
            "Friedman, Nemenyi",
            f"Over sites, p by {PERMUTATIONS} random orders of the entrants within each site "
            "(Demšar 2006).",
        ),
        (
            "sent, seconds",
            "Bytes to the sites and back, and wall-clock seconds of the rounds on this machine, "
            "for a whole run; means over seeds.",
        ),
    )
    items = "".join(f"<dt>{escape(term)}</dt><dd>{escape(said)}</dd>" for term, said in terms)
    return section("How to read it", f"<dl>{items}</dl>")


def _settings(result: Result) -> str:
    axes = "".join(
        f'<tr><th scope="row">{escape(key)}</th>'
        f'<td class="text">{escape(", ".join(values))}</td></tr>'
        for key, values in _axes(result).items()
    )
    run = result.comparison.first_run
    config = (
        "<details><summary>The whole configuration of the first finished cell; the others differ "
        f"in these keys alone</summary><pre>{escape(run.config_text)}</pre></details>"
        if run
        else ""
    )
    baseline = escape(result.comparison.baseline) or "the only entrant"
    return section(
        "Settings",
        f'<div class="scroll"><table><tbody>{axes}<tr><th scope="row">baseline</th>'
        f'<td class="text">{baseline}</td></tr></tbody></table></div>{config}',
    )
