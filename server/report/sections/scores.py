"""What models reach: every model at every site, by vendor, and on other data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape

import numpy as np

from fedshift.protocol.measures import Measure
from fedshift.protocol.messages import POOLED
from fedshift.protocol.words import count
from fedshift.server.report.answer import UPPER_BOUND
from fedshift.server.report.figures import LISTED_SITES, MANY_SITES, shade, vendor_groups
from fedshift.server.report.html import figure, section, shaded
from fedshift.server.report.run import Run
from fedshift.server.report.sections.matrices import EXTREMES, table
from fedshift.server.report.words import model_key
from fedshift.server.tables.overview import overview


def every_model(run: Run, figures: Mapping[str, bytes]) -> str:
    """Every measure's matrix as a table, one shown at a time."""
    title = "Every model at every site"
    if not run.measures:
        said = section(title, "<p>No cross-site evaluation yet.</p>")
        return "" if run.whole_measures else said
    assert run.task is not None
    if len(run.vendors) > MANY_SITES:
        rows = "One row a site, as there are many"
        if len(run.vendors) > LISTED_SITES:
            rows = (
                f"The {EXTREMES} best and the {EXTREMES} worst of {len(run.vendors)} sites by the "
                "federated model (of a measure without a better direction the lowest and the "
                "highest)"
            )
        lead = (
            f"{rows}: what each kind of model reaches there. "
            "The whole matrix is in <code>cross_site.csv</code>, and "
            f"{'its means by vendor' if vendor_groups(run) else 'shown'} in the picture below."
        )
        name = f"cross_site_{run.measures[0].name}.png"
        said = f"{run.measures[0].label} of each model at each site."
        picture = figure(figures[name], name, said) if name in figures else ""
    else:
        lead = (
            "A row is a model, a column the site whose test split it is scored on. "
            + {
                "": "Framed: the site that the model was trained at. ",
                "site": "Each column shows models that never saw that site: it was left out, and "
                "the models come from the other sites. ",
                "vendor": "Each column shows models that never saw a site with its vendor's "
                "scanners: all of them were left out. ",
                "labels": "Each column shows models that never saw a label of that site: it took "
                "part with its images alone. ",
            }[run.in_turn]
            + "Underlined: the best of a column, the pooled upper bound aside. "
            "Point at a cell for its number of scores and its interval. Mean, worst and gap (best "
            f"minus worst) are over the {'' if run.in_turn else 'training '}sites."
        )
        picture = ""
    failure = (
        f" A score counts as failed, and is the worst there is, when {escape(run.task.failure)}."
        if run.task.failure
        else ""
    )
    return section(
        title,
        f'<p class="lead">{lead} Darker is better.</p>{_matrices(run, run.measures)}{picture}'
        f'<p class="lead">Pooled: {UPPER_BOUND}.{failure}</p>{_by_vendor(run)}',
    )


def whole_splits(run: Run) -> str:
    """The matrices of what is measured of a whole test split at once."""
    if not run.whole_measures:
        return ""
    return section(
        "Of whole test splits",
        '<p class="lead">Measured over all cases of a site at once, with the interval that the '
        f"measure has. Darker is better.</p>{_matrices(run, run.whole_measures)}",
    )


def _matrices(run: Run, measures: Sequence[Measure]) -> str:
    """A table for each measure and part that it was taken of, and two lists to choose from."""
    present = {row["part"] for measure in measures for row in run.rows(measure, None)}
    parts: list[str | None] = [part for part in ("", *run.parts) if part in present]
    if len(parts) > 1:
        parts.insert(0, None)
    tables: list[str] = []
    for i, measure in enumerate(measures):
        for j, part in enumerate(parts):
            hidden = " hidden" if tables else ""
            measured = bool(run.rows(measure, part))
            body = table(run, run.matrix(measure, part)) if measured else "<p>Not measured.</p>"
            tables.append(f'<div class="scroll" data-table="{i}|{j}"{hidden}>{body}</div>')
    lists = _options("measure", [measure.label for measure in measures])
    alike = not any(run.parts_told(measure) for measure in measures)
    mean = "mean of all" if alike else "mean"
    lists += _options(run.part_name, [mean if name is None else name for name in parts])
    return f'<div class="matrices"><div class="choose" hidden>{lists}</div>{"".join(tables)}</div>'


def some_cases(run: Run) -> str:
    """What is measured of those cases that have it, beside the number of these."""
    rows = run.sparse
    if len(run.vendors) > MANY_SITES:
        rows = [row for row in rows if row.model[1] == POOLED]
    if not rows:
        return ""
    notes = "".join(
        f"<li>{escape(measure.label)}: {escape(measure.note)}</li>"
        for measure in run.sparse_measures
        if measure.note
    )
    heads = ["model", "site", *([run.part_name] if run.part_name else [])]
    head = "".join(f'<th scope="col" class="text">{escape(name)}</th>' for name in heads)
    head += "".join(
        f'<th scope="col">{escape(measure.label)}</th>' for measure in run.sparse_measures
    )
    body = ""
    for row in rows:
        body += f'<tr><th scope="row">{escape(run.label(row.model))}</th>'
        for name in (row.site, row.part)[: len(heads) - 1]:
            body += f'<td class="text">{escape(name)}</td>'
        for measure in run.sparse_measures:
            value, cases = row.values.get(measure.name, (np.nan, 0))
            body += f"<td>{measure.cell(value)}<small>{count(cases, 'case')}</small></td>"
        body += "</tr>"
    return section(
        "Of some cases only",
        '<p class="lead">Measured over those test cases to which it applies.</p>'
        f"{f'<ul>{notes}</ul>' if notes else ''}"
        f'<div class="scroll" data-table="some cases"><table><thead><tr>{head}</tr></thead>'
        f"<tbody>{body}</tbody></table></div>",
        "some-cases",
    )


def _by_vendor(run: Run) -> str:
    """Models x vendors, where that says more than the columns of the sites."""
    vendors = sorted(set(run.vendors.values()))
    if not run.scored or not 1 < len(vendors) < len(run.vendors):
        return ""
    headline = run.headline
    found = overview(run.scores, headline, run.unseen)
    # As in the matrix of many sites, one row for each site's model would be too long.
    if len(run.vendors) > MANY_SITES:
        found = [item for item in found if item.trained_on == POOLED]
    found.sort(key=lambda item: model_key((item.model, item.trained_on)))
    values = np.array([[item.vendors.get(vendor, np.nan) for vendor in vendors] for item in found])
    sites = [sum(vendor == of for of in run.vendors.values()) for vendor in vendors]
    head = "".join(
        f'<th scope="col" class="site">{escape(vendor) or "unknown"}'
        f"<small>{count(number, 'site')}</small></th>"
        for vendor, number in zip(vendors, sites, strict=True)
    )
    body = ""
    for item, line, colors in zip(found, values, shade(values, headline), strict=True):
        cells = "".join(
            f"<td {shaded(color)}>{headline.cell(value)}</td>"
            for value, color in zip(line, colors, strict=True)
        )
        label = escape(run.label((item.model, item.trained_on)))
        body += f'<tr><th scope="row">{label}</th>{cells}</tr>'
    several = " A site with several vendors counts as a vendor of its own, A+B."
    return (
        '<h3>By vendor</h3><p class="lead">Mean '
        f"{escape(headline.title)} over the sites of each vendor, unseen sites included."
        f"{several if any('+' in vendor for vendor in vendors) else ''}</p>"
        '<div class="scroll" data-table="vendors"><table class="heat"><thead><tr>'
        f'<th scope="col" class="text">model</th>{head}</tr></thead><tbody>{body}</tbody></table>'
        "</div>"
    )


def evaluated_later(run: Run) -> str:
    """The headline of everything that the finished models were scored on later."""
    shown = ""
    for found in run.evaluations:
        if not found.scored:
            continue
        own = found.config.get("data") == run.config.get("data")
        data = "this run's own test split" if own else f"every image of {_manifest(found)}"
        name, told = escape(found.folder.name), found.parts_told(found.headline)
        shown += (
            f'<h3>{name}</h3><p class="lead">'
            f"{escape(' '.join([f'{found.headline.label} on {data}.', *told]))}</p>"
            f'<div class="scroll" data-table="evaluation {name}">'
            f"{table(found, found.matrix(found.headline))}</div>"
        )
    if not shown:
        return ""
    return section(
        "Evaluated later",
        '<p class="lead">The same models on other data, without further training. All measures are '
        f"in <code>evaluations/</code>.</p>{shown}",
    )


def _manifest(run: Run) -> str:
    return str((run.config.get("data") or {}).get("manifest") or "other data")


def _options(label: str, names: Sequence[str]) -> str:
    """A list to choose from; a single thing is only named."""
    options = "".join(
        f'<option value="{index}">{escape(name)}</option>' for index, name in enumerate(names)
    )
    if len(names) == 1:
        only = f"<span>{escape(f'{label}: {names[0]}')}</span>" if names[0] else ""
        return f"{only}<select hidden>{options}</select>"
    return f'<label>{escape(label)} <select autocomplete="off">{options}</select></label>'
