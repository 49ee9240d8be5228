"""The report's few most telling lines, for the terminal."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from fedshift.protocol.messages import POOLED
from fedshift.protocol.words import count, short
from fedshift.server.report.answer import answer
from fedshift.server.report.run import Run, read_run
from fedshift.server.report.words import EACH_OWN, Model, format_number, shift_label

MAX_COLUMNS = 6
"""With more sites than this the table shows only the shared models and the summary columns; the
sentences below it give the means of the single-site models."""
MAX_PROBLEMS = 8
MAX_CORRELATIONS = 3


def summary(run: Path) -> RenderableType:
    """Return the run's headline as a table, what predicts its drop, failures, where the page is.

    Made for 80 columns: the names of models stay on one line, those of sites wrap.
    Raises :class:`fedshift.UserError` when ``run`` is no run folder or a file in it is broken.
    """
    contents = read_run(run)
    lines: list[RenderableType] = []
    if contents.scored:
        lines += [_headline(contents), *(Text(line) for line in answer(contents).sentences())]
    else:
        lines.append(Text("No model has been scored yet."))
    if contents.simulated:
        lines.append(Text(contents.simulated))
    if contents.correlations:
        lines.append(_correlations(contents))
    if contents.advice:
        lines.append(Text(contents.advice))
    problems = [
        f"{problem.site} {problem.kind} {count(len(problem.rounds), 'time')}: {problem.reason}"
        for problem in contents.problems
    ]
    problems += [f"not evaluated: {note}" for note in contents.missing]
    problems += [f"not drawn: {note}" for note in contents.undrawn]
    lines += [Text(problem, style="yellow") for problem in problems[:MAX_PROBLEMS]]
    left_out = len(problems) - MAX_PROBLEMS
    if left_out > 0:
        lines.append(Text(f"and {left_out} more, listed in the report", style="yellow"))
    page = run / "report.html"
    if page.is_file():
        lines.append(Text(f"report: {page}"))
    return Group(*lines)


def _headline(run: Run) -> Table:
    """Models x sites with the best of a column bold, the pooled upper bound aside."""
    headline = run.headline
    matrix = run.matrix(headline)
    found = run.overviews(headline)
    shown = range(len(matrix.sites)) if len(matrix.sites) <= MAX_COLUMNS else range(0)
    # With a column of its own, a single unseen site needs no mean.
    unseen = sum(site in run.unseen for site in matrix.sites) > (1 if shown else 0)
    where = {
        "": "",
        "site": ", each site by models that never saw it",
        "vendor": ", each site by models that never saw its vendor",
        "labels": ", each site by models that never saw its labels",
    }[run.in_turn]
    table = _table(title=f"{headline.label} on the test split{where}")
    table.add_column("model", no_wrap=True)
    for column in shown:
        site = matrix.sites[column]
        # Text, since a site's name may hold what rich would read as markup.
        header = Text(f"{short(site)}\n(unseen)" if site in run.unseen else short(site))
        table.add_column(header, justify="right", overflow="fold", min_width=5)
    ends = ("mean", "worst", *(["unseen"] if unseen else [])) if found else ()
    for name in ends:
        table.add_column(name, justify="right", no_wrap=True)
    for row, model in enumerate(matrix.models):
        if not shown and model[1] != POOLED:
            continue
        summaries = [""] * len(ends)
        if item := found.get(model):
            values = [item.macro_mean, item.worst, *([item.unseen] if unseen else [])]
            summaries = [headline.cell(value) for value in values]
        cells = [
            Text(
                headline.cell(matrix.mean[row, column]),
                style="bold" if matrix.best[row, column] else "",
            )
            for column in shown
        ]
        table.add_row(Text(short(_label(model))), *cells, *summaries)
    return table


def _label(model: Model) -> str:
    """Shorter than on the page: here a line has 80 columns."""
    name, trained_on = model
    if model == EACH_OWN or trained_on != POOLED:
        return f"{name} {'(own)' if model == EACH_OWN else trained_on}"
    return "federated" if name == "global" else name


def _correlations(run: Run) -> Table:
    """The strongest rank correlations of a shift metric with the drop in the headline."""
    left_out = len(run.correlations) - MAX_CORRELATIONS
    table = _table(
        title=f"Shift against {run.headline.worsening}, over pairs of sites",
        caption=f"and {left_out} more in the report" if left_out > 0 else None,
        caption_justify="left",
    )
    table.add_column("shift metric", no_wrap=True)
    for name in ("Spearman's rho", "p", "pairs"):
        table.add_column(name, justify="right", no_wrap=True)
    for found in run.correlations[:MAX_CORRELATIONS]:
        table.add_row(
            shift_label(found.metric),
            format_number(found.rho),
            format_number(found.p_value),
            str(found.n_pairs),
        )
    return table


def _table(**options: Any) -> Table:
    return Table(
        title_justify="left",
        title_style="bold",
        box=box.SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
        **options,
    )
