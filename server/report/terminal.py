"""The report's few most telling lines, for the terminal."""

from __future__ import annotations

from pathlib import Path

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from fedshift.server.report.answer import answer
from fedshift.server.report.run import Run, count, format_value, read_run

MAX_COLUMNS = 6
"""With more sites than this the table shows only the shared models and the summary columns; the
sentences below it give the means of the single-site models."""
MAX_PROBLEMS = 8
SHORT = {"global": "federated"}


def summary(run: Path) -> RenderableType:
    """Return the run's Dice table, shift-against-drop lines, failures and where the report is.

    Raises :class:`fedshift.UserError` when ``run`` is no run folder or a file in it is broken.
    """
    contents = read_run(run)
    lines: list[RenderableType] = []
    if "dice" in contents.metrics:
        lines += [_dice(contents), *(Text(line) for line in answer(contents).sentences())]
    else:
        lines.append(Text("No model has been scored yet."))
    lines += [
        Text(
            f"shift against drop, {found.metric}: rho {found.rho:.2f}, p {found.p_value:.3f}, "
            f"{count(found.n_pairs, 'pair')}",
            style="dim",
        )
        for found in contents.correlations
    ]
    for problem in contents.problems[:MAX_PROBLEMS]:
        times = count(len(problem.rounds), "time")
        lines.append(
            Text(f"{problem.site} {problem.kind} {times}: {problem.reason}", style="yellow")
        )
    left_out = len(contents.problems) - MAX_PROBLEMS
    if left_out > 0:
        lines.append(Text(f"and {left_out} more, listed in the report", style="yellow"))
    page = run / "report.html"
    if page.is_file():
        lines.append(Text(f"report: {page}"))
    return Group(*lines)


def _dice(run: Run) -> Table:
    """Models x sites with the best of a column bold, the pooled upper bound aside."""
    matrix = run.matrix("dice")
    found = run.overviews("dice")
    shown = range(len(matrix.sites)) if len(matrix.sites) <= MAX_COLUMNS else range(0)
    # With a column of its own, a single unseen site needs no mean.
    unseen = sum(site in run.unseen for site in matrix.sites) > (1 if shown else 0)
    table = Table(
        title="Dice on the test split",
        title_justify="left",
        title_style="bold",
        box=box.SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
    )
    table.add_column("model", overflow="fold")
    for column in shown:
        site = matrix.sites[column]
        # Text, since a site's name may hold what rich would read as markup.
        header = Text(f"{site}\n(unseen)" if site in run.unseen else site)
        table.add_column(header, justify="right", overflow="fold")
    ends = ("mean", "worst", "gap", *(["unseen"] if unseen else [])) if found else ()
    for name in ends:
        table.add_column(name, justify="right", no_wrap=True)
    for row, model in enumerate(matrix.models):
        if not shown and model[1] != "all":
            continue
        summaries = [""] * len(ends)
        if item := found.get(model):
            values = [item.macro_mean, item.worst, item.gap, *([item.unseen] if unseen else [])]
            summaries = [format_value("dice", value) for value in values]
        cells = [
            Text(
                format_value("dice", matrix.mean[row, column]),
                style="bold" if matrix.best[row, column] else "",
            )
            for column in shown
        ]
        name, trained_on = model
        label = SHORT.get(name, name) if trained_on == "all" else f"{name} {trained_on}"
        table.add_row(Text(label), *cells, *summaries)
    return table
