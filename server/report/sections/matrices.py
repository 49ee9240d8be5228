"""One measure of every model at every site, as a table."""

from __future__ import annotations

from html import escape

import numpy as np

from fedshift.protocol.messages import POOLED
from fedshift.protocol.words import count
from fedshift.server.report.figures import LISTED_SITES, MANY_SITES, hex_color, is_dark, shade
from fedshift.server.report.html import shaded
from fedshift.server.report.matrix import Matrix
from fedshift.server.report.run import Run

EXTREMES = 3
"""Of more than ``LISTED_SITES`` sites so many of the best and of the worst are listed."""


def table(run: Run, matrix: Matrix) -> str:
    """Models x sites, or a row a site where the sites are too many for that."""
    return (_site_table if len(matrix.sites) > MANY_SITES else _matrix_table)(run, matrix)


def _matrix_table(run: Run, matrix: Matrix) -> str:
    """Models x sites, with each model's mean, worst and gap over the training sites."""
    colors = shade(matrix.mean, matrix.measure)
    summaries = run.overviews(matrix.measure, matrix.part)
    head = "".join(
        f'<th scope="col" class="site">{escape(site)}{about(run, site)}</th>'
        for site in matrix.sites
    )
    if summaries:
        head = '<th scope="col">mean</th><th scope="col">worst</th><th scope="col">gap</th>' + head
    groups: dict[str, str] = {}
    for row, model in enumerate(matrix.models):
        cells = "".join(
            _cell(matrix, row, column, colors[row, column]) for column in range(len(matrix.sites))
        )
        ends = ""
        if summaries:
            item = summaries.get(model)
            values = (item.macro_mean, item.worst, item.gap) if item else (np.nan,) * 3
            ends = "".join(f"<td>{matrix.measure.cell(value)}</td>" for value in values)
        line = f'<tr><th scope="row">{escape(run.label(model))}</th>{ends}{cells}</tr>'
        groups[model[0]] = groups.get(model[0], "") + line
    body = "".join(f"<tbody>{lines}</tbody>" for lines in groups.values())
    return (
        '<table class="heat"><thead><tr><th scope="col" class="text">model</th>'
        f"{head}</tr></thead>{body}</table>"
    )


def about(run: Run, site: str) -> str:
    """The vendor of a site, unless it gave the site its name, and whether the site is unseen."""
    vendor = run.vendors.get(site, "")
    said = [escape(vendor)] if vendor not in ("", site) else []
    said += ["unseen"] if site in run.unseen else []
    return "".join(f"<small>{text}</small>" for text in said)


def _cell(matrix: Matrix, row: int, column: int, color: np.ndarray) -> str:
    if np.isnan(matrix.mean[row, column]):
        return '<td class="cell">–</td>'
    value = matrix.measure.cell(matrix.mean[row, column])
    scores, failed = matrix.scores[row, column], matrix.failed[row, column]
    hint = f"{count(int(scores), 'score')}, {failed} failed"
    if not np.isnan(matrix.low[row, column]):
        low, high = (matrix.measure.cell(end[row, column]) for end in (matrix.low, matrix.high))
        hint += f", 95 % interval {low} to {high}"
    classes = ["cell"]
    if is_dark(color):
        classes.append("dark")
    if matrix.home[row, column]:
        classes.append("home")
    number = f'<span class="best">{value}</span>' if matrix.best[row, column] else value
    missed = f"<small>{failed} failed</small>" if failed else ""
    return (
        f'<td class="{" ".join(classes)}" style="background:{hex_color(color)}" title="{hint}">'
        f"{number}{missed}</td>"
    )


def _site_table(run: Run, matrix: Matrix) -> str:
    """One row a site: each kind of model there; for federations too wide for a matrix."""
    kinds: dict[str, np.ndarray] = {}
    for kind in ("local", "personal"):
        rows = [index for index, model in enumerate(matrix.models) if model[0] == kind]
        if rows:
            mean, home = matrix.mean[rows], matrix.home[rows]
            kinds[f"{kind}, the site's own"] = _column_mean(np.where(home, mean, np.nan))
            if not home[~np.isnan(mean)].all():
                kinds[f"{kind}, mean of other sites'"] = _column_mean(np.where(home, np.nan, mean))
    for row, model in enumerate(matrix.models):
        if model[0] not in ("local", "personal"):
            kinds[run.label(model)] = matrix.mean[row]
    columns = np.stack(list(kinds.values()), axis=1)
    colors = shade(columns, matrix.measure)
    shown, left_out = _shown_sites(run, matrix)
    head = "".join(f'<th scope="col" class="site">{escape(kind)}</th>' for kind in kinds)
    lines = []
    for row in shown:
        site = matrix.sites[row]
        cells = "".join(
            f"<td {shaded(color)}>{matrix.measure.cell(value)}</td>"
            for value, color in zip(columns[row], colors[row], strict=True)
        )
        failed = f"{matrix.failed[:, row].sum()} of {matrix.scores[:, row].sum()}"
        lines.append(
            f'<tr><th scope="row">{escape(site)}{about(run, site)}</th>{cells}'
            f"<td>{failed}</td></tr>"
        )
    if left_out:
        # The rest between the two ends, which says more than any choice of it.
        middle = "".join(
            f'<td class="cell">{matrix.measure.cell(v)}</td>' for v in _medians(columns)
        )
        failed = f"{matrix.failed.sum()} of {matrix.scores.sum()}"
        said = f"{left_out} sites between; median of all {len(matrix.sites)}"
        lines.insert(
            EXTREMES, f'<tr><th scope="row">{said}</th>{middle}<td>{failed}, all sites</td></tr>'
        )
    return (
        f'<table class="heat"><thead><tr><th scope="col" class="text">site</th>{head}'
        '<th scope="col">failed scores,<br>all models</th></tr></thead>'
        f"<tbody>{''.join(lines)}</tbody></table>"
    )


def _shown_sites(run: Run, matrix: Matrix) -> tuple[list[int], int]:
    """The places of the sites that have a row, and how many have none: of very many sites only
    those at the two ends by the federated model (without one, by the mean over models)."""
    places = list(range(len(matrix.sites)))
    if len(places) <= LISTED_SITES:
        return places, 0
    shared = [index for index, model in enumerate(matrix.models) if model == ("global", POOLED)]
    value = _column_mean(matrix.mean[shared] if shared else matrix.mean)
    known = sorted((p for p in places if not np.isnan(value[p])), key=lambda p: value[p])
    if matrix.measure.better == "higher":
        known.reverse()
    ends = [*known[:EXTREMES], *known[EXTREMES:][-EXTREMES:]]
    return ends, len(places) - len(ends)


def _medians(columns: np.ndarray) -> list[float]:
    return [
        float(np.median(known)) if (known := column[~np.isnan(column)]).size else np.nan
        for column in columns.T
    ]


def _column_mean(values: np.ndarray) -> np.ndarray:
    known = ~np.isnan(values)
    total = np.where(known, values, 0).sum(axis=0)
    number = known.sum(axis=0)
    return np.divide(total, number, out=np.full(number.shape, np.nan), where=number > 0)
