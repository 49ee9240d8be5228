"""What failed, how to read the page, and what was run."""

from __future__ import annotations

from html import escape

from fedshift.protocol.words import count, plural
from fedshift.server.comparison.ranking import Result
from fedshift.server.comparison.statistics import DRAWS, FEWEST_PAIRS, PERMUTATIONS
from fedshift.server.report.html import section

MAX_CELLS = 40


def cells(result: Result) -> str:
    """The cells without a result, and why; empty where all have one."""
    total = result.comparison.cells
    failed = [cell for cell in total if cell.status == "failed"]
    left = [cell for cell in total if cell.status == "left"]
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
        f'<p class="lead">Of {count(len(total), "cell")}, {" and ".join(parts)}. The same command '
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


def reading(result: Result) -> str:
    """What the page's terms mean."""
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
    headline, parts = task.headline, f"over {plural(task.part)} and " if task.part else ""
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


def settings(result: Result) -> str:
    """What was compared, and the whole configuration of one cell."""
    axes = "".join(
        f'<tr><th scope="row">{escape(key)}</th>'
        f'<td class="text">{escape(", ".join(values))}</td></tr>'
        for key, values in result.comparison.axes.items()
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
