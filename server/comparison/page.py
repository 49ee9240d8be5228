"""The page of a comparison: one HTML file that opens offline, in the style of the run report."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape
from importlib.resources import files

from fedshift.protocol.words import count, some
from fedshift.server.comparison.ranking import Result
from fedshift.server.comparison.sections.costs import trade_off, training
from fedshift.server.comparison.sections.ranked import ranked
from fedshift.server.comparison.sections.reading import cells, reading, settings
from fedshift.server.comparison.sections.sites import (
    at_sites,
    critical_difference,
    single_site_models,
)
from fedshift.server.comparison.words import sentences
from fedshift.server.report.html import document

FEW_SUBJECTS = 10
"""At a site with fewer test subjects a bootstrap interval comes out too narrow."""


def page(result: Result, figures: Mapping[str, bytes]) -> str:
    """Return the whole page; a part without data is left out."""
    sections = (
        _notes(result),
        ranked(result),
        at_sites(result),
        critical_difference(result, figures),
        trade_off(result, figures),
        training(result, figures),
        single_site_models(result, figures),
        cells(result),
        reading(result),
        settings(result),
    )
    style = files("fedshift.server.comparison").joinpath("page.css").read_text(encoding="utf-8")
    return document(_title(result), _facts(result), _headline(result), sections, style)


def _title(result: Result) -> str:
    compared = [key for key, values in result.comparison.axes.items() if len(values) > 1]
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
            if key in run.config and key not in result.comparison.axes
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
    said += [escape(sentence) for sentence in comparison.parts_told]
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
