"""The report page: one HTML file that needs no other file and no network."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from pathlib import Path
from urllib.parse import quote

import numpy as np

from fedshift.protocol.messages import POOLED
from fedshift.protocol.storage import write_atomic
from fedshift.protocol.tables import HIGHER_IS_BETTER
from fedshift.protocol.words import count, some
from fedshift.server.report.answer import UPPER_BOUND, Answer, answer
from fedshift.server.report.figures import (
    LISTED_SITES,
    MANY_SITES,
    draw_all,
    hex_color,
    is_dark,
    metric_title,
    shade,
    vendor_groups,
)
from fedshift.server.report.html import document, figure, section, shaded
from fedshift.server.report.run import (
    Matrix,
    Run,
    Sent,
    format_bytes,
    format_value,
    model_key,
    read_run,
    shift_label,
)
from fedshift.server.tables import overview

MAX_EXAMPLES = 12
FEW_PICTURES = 6
MAX_MISSING = 20
EXTREMES = 3
"""Of more than ``LISTED_SITES`` sites so many of the best and of the worst are listed."""


def build(run: Path) -> Path:
    """Write ``figures/*.png`` and ``report.html`` into the run folder; return the page's path.

    Works with what the folder holds so far: a part without data says so or is left out. The same
    folder gives the same bytes. Each file is replaced as a whole, never left half written.
    Raises :class:`fedshift.UserError` when ``run`` is no run folder or a file in it is broken.
    """
    contents = read_run(run)
    figures = draw_all(contents)
    for name, png in figures.items():
        write_atomic(run / "figures" / name, png)
    page = run / "report.html"
    write_atomic(page, _page(contents, figures))
    return page


def _page(run: Run, figures: Mapping[str, bytes]) -> str:
    sections = (
        _notes(run),
        _cross_site(run, figures),
        _negatives(run),
        _folds(run),
        _method(run),
        _training(run, figures),
        _shift(run, figures),
        _evaluations(run),
        _examples(run),
        _egress(run, figures),
        _sites(run),
        _problems(run),
        _config(run),
    )
    return document(_title(run), _facts(run), _headline(run), sections)


def _title(run: Run) -> str:
    return f"Federation {run.setting('federation')}"


def _facts(run: Run) -> str:
    facts = [f"method {run.setting('method')}", f"strategy {run.setting('strategy')}"]
    if run.in_turn:
        each = {"vendor": "left out with its vendor", "labels": "without labels"}.get(
            run.in_turn, "left out"
        )
        facts.append(f"{count(len(run.sites), 'site')}, each {each} in turn")
    else:
        trained = len(run.sites) - len(run.unseen)
        facts += [
            f"{len(run.rounds)} of {count(run.config['rounds'], 'round')}"
            if "rounds" in run.config
            else count(len(run.rounds), "round"),
            count(trained, "training site")
            + (f" and {len(run.unseen)} unseen" if run.unseen else ""),
        ]
    if "seed" in run.config:
        facts.append(f"seed {run.config['seed']}")
    return escape(" · ".join(facts))


def _headline(run: Run) -> str:
    if "dice" not in run.metrics:
        return '<p class="answer">No model has been scored yet.</p>'
    found = answer(run)
    worst = f" (worst: {found.worst_site} {found.worst:.3f})" if found.sites > 1 else ""
    without = "without labels" if found.in_turn == "labels" else "left out"
    where = f", at the site {without}" if found.in_turn else ""
    tiles = [
        (found.federated, f"federated, mean Dice{where}{worst}"),
        (found.home, "single-site models at home"),
        (found.away, "single-site models at other sites"),
        (found.personal, "personalised models at home"),
        (found.pooled, "pooled: upper bound, simulation only"),
        (found.unseen_federated, f"federated at {_unseen_words(found)}"),
    ]
    shown = "".join(
        f'<div class="tile"><b>{value:.3f}</b><span>{escape(label)}</span></div>'
        for value, label in tiles
        if not np.isnan(value)
    )
    said = [escape(sentence) for sentence in found.sentences()]
    if not said:
        return '<p class="answer">Every model at every site is below.</p>'
    first, *rest = said
    return f'<p class="answer">{first}</p><p>{" ".join(rest)}</p>\n<div class="tiles">{shown}</div>'


def _unseen_words(found: Answer) -> str:
    return f"unseen {found.unseen[0]}" if len(found.unseen) == 1 else "unseen sites"


def _notes(run: Run) -> str:
    """What a reader must know before the numbers: the sites' notes and what went wrong."""
    sites_of: dict[str, list[str]] = {}
    for name, card in sorted(run.cards.items()):
        for note in card["notes"]:
            sites_of.setdefault(note, []).append(name)
    said = [
        f"<li><b>{escape(_names(sites))}</b>: {escape(note)}</li>"
        for note, sites in sorted(sites_of.items(), key=lambda item: -len(item[1]))[:MAX_MISSING]
    ]
    if len(sites_of) > MAX_MISSING:
        said.append(f"<li>{len(sites_of) - MAX_MISSING} more notes stand below, by site.</li>")
    said += [
        f"<li><b>{escape(found['sites']) or 'all sites'}</b>: {escape(found['sentence'])}"
        f"{' (accepted)' if found['severity'] == 'error' else ''}</li>"
        for found in run.findings
    ]
    events = sum(len(problem.rounds) for problem in run.problems)
    if events:
        said.append(
            f'<li>{count(events, "failure")} during the run, <a href="#problems">listed below</a>.'
            "</li>"
        )
    if run.missing:
        said.append(
            f"<li>{count(len(run.missing), 'gap')} in the evaluation, "
            '<a href="#problems">listed below</a>.</li>'
        )
    if not said:
        return ""
    items = "".join(said)
    return f'<div class="note"><p>Before reading the numbers</p><ul>{items}</ul></div>'


def _names(sites: Sequence[str]) -> str:
    return some(sites)


def _cross_site(run: Run, figures: Mapping[str, bytes]) -> str:
    """Every metric's matrix as a table, one shown at a time."""
    if not run.cross_site:
        return section("Every model at every site", "<p>No cross-site evaluation yet.</p>")
    whole: tuple[str | None, ...] = (None,) if len(run.structures) > 1 else ()
    structures = (*whole, *run.structures)
    many = len(run.vendors) > MANY_SITES
    tables: list[str] = []
    for i, metric in enumerate(run.metrics):
        for j, structure in enumerate(structures):
            hidden = " hidden" if tables else ""
            body = _table(run, run.matrix(metric, structure))
            tables.append(f'<div class="scroll" data-table="{i}|{j}"{hidden}>{body}</div>')
    metric_list = _options("metric", [metric_title(metric) for metric in run.metrics])
    structure_list = _options(
        "structure", ["mean of all" if name is None else name for name in structures]
    )
    if many:
        rows = "One row a site, as there are many"
        if len(run.vendors) > LISTED_SITES:
            rows = (
                f"The {EXTREMES} best and the {EXTREMES} worst of {len(run.vendors)} sites by the "
                "federated model (of volumes the lowest and the highest)"
            )
        lead = (
            f"{rows}: what each kind of model reaches there. "
            "The whole matrix is in <code>cross_site.csv</code>, and "
            f"{'its means by vendor' if vendor_groups(run) else 'shown'} in the picture below."
        )
        name = "cross_site_dice.png"
        picture = (
            figure(figures[name], name, "Dice of each model at each site.")
            if (name in figures)
            else ""
        )
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
            "Point at a cell for its number of masks and its interval. Mean, worst and gap (best "
            f"minus worst) are over the {'' if run.in_turn else 'training '}sites."
        )
        picture = ""
    return section(
        "Every model at every site",
        f'<p class="lead">{lead} Darker is better.</p>'
        f'<div class="matrices"><div class="choose" hidden>{metric_list}{structure_list}</div>'
        f"{''.join(tables)}</div>{picture}"
        f'<p class="lead">Pooled: {UPPER_BOUND}. A mask counts as failed, with the worst score, '
        f"when exactly one of truth and prediction is empty.</p>{_by_vendor(run)}",
    )


def _negatives(run: Run) -> str:
    """What models find where nothing is, beside their Dice where something is."""
    rows = run.negatives
    if len(run.vendors) > MANY_SITES:
        rows = [row for row in rows if row["model"][1] == POOLED]
    if not rows:
        return ""
    columns = (
        "specificity",
        "dice_positives",
        "false_positive_ml",
        "false_positive_components",
    )
    head = "".join(f'<th scope="col">{escape(metric_title(name))}</th>' for name in columns)
    body = "".join(
        f'<tr><th scope="row">{escape(run.label(row["model"]))}</th>'
        f'<td class="text">{escape(row["site"])}</td>'
        f'<td class="text">{escape(row["structure"])}</td><td>{row["n"]}</td>'
        + "".join(f"<td>{format_value(name, row[name])}</td>" for name in columns)
        + "</tr>"
        for row in rows
    )
    return section(
        "Where nothing is to be found",
        '<p class="lead">Test cases whose reference has none of a structure. Specificity: the '
        "share of these in which the model finds none either. Dice positives: the mean over the "
        "other cases; the Dice above counts a negative case as 1, or as 0 where the model finds "
        "something. False positives (volume and components outside the reference) are means over "
        "all cases.</p>"
        '<div class="scroll"><table><thead><tr><th scope="col" class="text">model</th>'
        '<th scope="col" class="text">site</th><th scope="col" class="text">structure</th>'
        f'<th scope="col">negative cases</th>{head}</tr></thead>'
        f"<tbody>{body}</tbody></table></div>",
        "negatives",
    )


def _by_vendor(run: Run) -> str:
    """Models x vendors, where that says more than the columns of the sites."""
    vendors = sorted(set(run.vendors.values()))
    if "dice" not in run.metrics or not 1 < len(vendors) < len(run.vendors):
        return ""
    found = overview(run.scores, run.unseen)
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
    for item, line, colors in zip(found, values, shade(values, "dice"), strict=True):
        cells = "".join(
            f"<td {shaded(color)}>{format_value('dice', value)}</td>"
            for value, color in zip(line, colors, strict=True)
        )
        label = escape(run.label((item.model, item.trained_on)))
        body += f'<tr><th scope="row">{label}</th>{cells}</tr>'
    several = " A site with several vendors counts as a vendor of its own, A+B."
    return (
        '<h3>By vendor</h3><p class="lead">Mean Dice over the sites of each vendor, unseen sites '
        f"included.{several if any('+' in vendor for vendor in vendors) else ''}</p>"
        '<div class="scroll" data-table="vendors"><table class="heat"><thead><tr>'
        f'<th scope="col" class="text">model</th>{head}</tr></thead><tbody>{body}</tbody></table>'
        "</div>"
    )


def _folds(run: Run) -> str:
    """Where the run without each site, or without its labels, is."""
    if not run.folds:
        return ""
    part = {"vendor": "vendor ", "labels": "the labels of "}.get(run.in_turn, "")
    items = "".join(
        f'<li><a href="folds/{escape(quote(fold.folder.name))}/report.html">'
        f"without {part}{escape(fold.folder.name)}</a></li>"
        for fold in run.folds
    )
    return section(
        "The folds",
        '<p class="lead">Each fold is a run of its own, with its training curves, shift, examples '
        f"and what left each site on its own page.</p><ul>{items}</ul>",
    )


def _method(run: Run) -> str:
    """What the method shows of its work. Where that is much, only the first site's is open."""
    if not run.pictures:
        return ""
    few = sum(map(len, run.pictures.values())) <= FEW_PICTURES
    sites = ""
    for site, pictures in run.pictures.items():
        shown = "".join(
            f"<h3>{escape(picture.title)}</h3>"
            f"{figure(picture.path.read_bytes(), picture.title, picture.caption)}"
            for picture in pictures
        )
        opened = " open" if few or not sites else ""
        sites += (
            f'<details class="site"{opened}><summary>{escape(site)}{_about(run, site)}'
            f"</summary>{shown}</details>"
        )
    return section(
        f"The method at work: {run.setting('method')}",
        '<p class="lead">What the method does with test images of each site, drawn with the '
        "finished model where the images are; like the examples below, these pictures never leave "
        f"a real site.</p>{sites}",
        "method",
    )


def _evaluations(run: Run) -> str:
    """The Dice matrix of everything that the finished models were scored on later."""
    shown = ""
    for found in run.evaluations:
        if "dice" not in found.metrics:
            continue
        own = found.config.get("data") == run.config.get("data")
        data = "this run's own test split" if own else f"every image of {_manifest(found)}"
        name = escape(found.folder.name)
        shown += (
            f'<h3>{name}</h3><p class="lead">Dice on {escape(data)}.</p>'
            f'<div class="scroll" data-table="evaluation {name}">'
            f"{_table(found, found.matrix('dice'))}</div>"
        )
    if not shown:
        return ""
    return section(
        "Evaluated later",
        '<p class="lead">The same models on other data, without further training. All metrics are '
        f"in <code>evaluations/</code>.</p>{shown}",
    )


def _manifest(run: Run) -> str:
    return str((run.config.get("data") or {}).get("manifest") or "other data")


def _table(run: Run, matrix: Matrix) -> str:
    """Models x sites, or a row a site where the sites are too many for that."""
    return (_site_table if len(matrix.sites) > MANY_SITES else _matrix_table)(run, matrix)


def _options(label: str, names: Sequence[str]) -> str:
    options = "".join(
        f'<option value="{index}">{escape(name)}</option>' for index, name in enumerate(names)
    )
    return f'<label>{label} <select autocomplete="off">{options}</select></label>'


def _matrix_table(run: Run, matrix: Matrix) -> str:
    """Models x sites, with each model's mean, worst and gap over the training sites."""
    colors = shade(matrix.mean, matrix.metric)
    summaries = run.overviews(matrix.metric, matrix.structure)
    head = "".join(
        f'<th scope="col" class="site">{escape(site)}{_about(run, site)}</th>'
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
            ends = "".join(f"<td>{format_value(matrix.metric, value)}</td>" for value in values)
        line = f'<tr><th scope="row">{escape(run.label(model))}</th>{ends}{cells}</tr>'
        groups[model[0]] = groups.get(model[0], "") + line
    body = "".join(f"<tbody>{lines}</tbody>" for lines in groups.values())
    return (
        '<table class="heat"><thead><tr><th scope="col" class="text">model</th>'
        f"{head}</tr></thead>{body}</table>"
    )


def _about(run: Run, site: str) -> str:
    """The vendor of a site, unless it gave the site its name, and whether the site is unseen."""
    vendor = run.vendors.get(site, "")
    said = [escape(vendor)] if vendor not in ("", site) else []
    said += ["unseen"] if site in run.unseen else []
    return "".join(f"<small>{text}</small>" for text in said)


def _cell(matrix: Matrix, row: int, column: int, color: np.ndarray) -> str:
    if np.isnan(matrix.mean[row, column]):
        return '<td class="cell">–</td>'
    value = format_value(matrix.metric, matrix.mean[row, column])
    masks, failed = matrix.masks[row, column], matrix.failed[row, column]
    hint = f"{count(int(masks), 'mask')}, {failed} failed"
    if not np.isnan(matrix.low[row, column]):
        low, high = (
            format_value(matrix.metric, end[row, column]) for end in (matrix.low, matrix.high)
        )
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
    colors = shade(columns, matrix.metric)
    shown, left_out = _shown_sites(run, matrix)
    head = "".join(f'<th scope="col" class="site">{escape(kind)}</th>' for kind in kinds)
    lines = []
    for row in shown:
        site = matrix.sites[row]
        cells = "".join(
            f"<td {shaded(color)}>{format_value(matrix.metric, value)}</td>"
            for value, color in zip(columns[row], colors[row], strict=True)
        )
        failed = f"{matrix.failed[:, row].sum()} of {matrix.masks[:, row].sum()}"
        lines.append(
            f'<tr><th scope="row">{escape(site)}{_about(run, site)}</th>{cells}'
            f"<td>{failed}</td></tr>"
        )
    if left_out:
        # The rest between the two ends, which says more than any choice of it.
        middle = "".join(
            f'<td class="cell">{format_value(matrix.metric, v)}</td>' for v in _medians(columns)
        )
        failed = f"{matrix.failed.sum()} of {matrix.masks.sum()}"
        said = f"{left_out} sites between; median of all {len(matrix.sites)}"
        lines.insert(
            EXTREMES, f'<tr><th scope="row">{said}</th>{middle}<td>{failed}, all sites</td></tr>'
        )
    return (
        f'<table class="heat"><thead><tr><th scope="col" class="text">site</th>{head}'
        '<th scope="col">failed masks,<br>all models</th></tr></thead>'
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
    if matrix.metric in HIGHER_IS_BETTER:
        known.reverse()
    ends = [*known[:EXTREMES], *known[EXTREMES:][-EXTREMES:]]
    return ends, len(places) - len(ends)


def _medians(columns: np.ndarray) -> list[float]:
    return [
        float(np.median(known)) if (known := column[~np.isnan(column)]).size else np.nan
        for column in columns.T
    ]


def _dash(value: float, decimals: int) -> str:
    return "–" if np.isnan(value) else f"{value:.{decimals}f}"


def _column_mean(values: np.ndarray) -> np.ndarray:
    known = ~np.isnan(values)
    total = np.where(known, values, 0).sum(axis=0)
    number = known.sum(axis=0)
    return np.divide(total, number, out=np.full(number.shape, np.nan), where=number > 0)


def _training(run: Run, figures: Mapping[str, bytes]) -> str:
    if run.in_turn:
        return ""  # Each fold trains for itself, and its page says how.
    if not run.rounds:
        return section("Training", "<p>No round has finished yet.</p>")
    seconds = sum(line["seconds"] for line in run.rounds)
    down, up = (sum(line[key] for line in run.rounds) for key in ("bytes_down", "bytes_up"))
    text = (
        f"{count(len(run.rounds), 'round')} in {seconds:.1f} s of training and exchange; "
        f"{format_bytes(down)} went to the sites and {format_bytes(up)} came back."
    )
    picture = figure(
        figures["curves.png"],
        "curves.png",
        "Each site's validation split after every round: the federated model, the model that the "
        "site trains alone, and the pooled one where it was trained."
        if run.curve("val_dice", run.main_arm)
        else "The training loss alone: nothing was validated.",
    )
    if run.simulated:
        bars = figure(
            figures["timeline.png"],
            "timeline.png",
            "The first rounds. A site that would answer after the deadline is too late and is not "
            "waited for; one that cannot be asked is away. Scoring takes no simulated time.",
        )
        said = f'<p class="lead">{escape(run.simulated)}</p>'
        picture += f"<h3>In simulated time</h3>{said}{bars}"
    return section("Training", f'<p class="lead">{text}</p>{picture}')


def _shift(run: Run, figures: Mapping[str, bytes]) -> str:
    if run.in_turn:
        return ""
    title = "How far apart the sites are, and what it costs"
    if not run.shift:
        return section(title, "<p>No shift between sites was measured.</p>")
    advice = f"<p>{escape(run.advice)}</p>" if run.advice else ""
    told = f'<p class="lead">{escape(run.shift_told)}</p>' if run.shift_told else ""
    if not run.correlations:
        takes = (
            "pairs that stand for all, as shift.pairs=sampled draws them"
            if run.shift_pairs == "nearest"
            else "local models scored at home and at other sites"
        )
        return section(
            title,
            "<p>Shift was measured but cannot be set against a drop in Dice: that takes "
            f"{takes}.</p>{told}{advice}{_pair_table(run)}",
        )
    body = "".join(
        f'<tr><th scope="row">{escape(shift_label(found.metric))}</th>'
        f"<td>{_dash(found.rho, 2)}</td><td>{_dash(found.p_value, 3)}</td>"
        f"<td>{found.n_pairs}</td></tr>"
        for found in run.correlations
    )
    picture = figure(
        figures["shift_drop.png"],
        "shift_drop.png",
        "A point is an ordered pair of sites: how much Dice a site's own model loses at the other "
        "site, against the shift between the two, measured from summaries and never from images.",
    )
    pairs = run.pairs(run.correlations[0].metric)
    sites = len({name for pair in pairs for name in (pair.home, pair.site)})
    caution = ""
    if sites < 5:
        namings = math.factorial(sites)
        caution = (
            f'<div class="note"><p>{count(sites, "site")} can be renamed in only {namings} ways, '
            f"so p cannot fall below {1 / namings:.2f}: read ρ as a description of these sites, "
            "not as evidence.</p></div>"
        )
    return section(
        title,
        f'{told}{picture}<div class="scroll"><table><thead><tr><th scope="col" class="text">'
        'shift metric</th><th scope="col">Spearman ρ</th><th scope="col">p</th>'
        '<th scope="col">pairs</th></tr>'
        f"</thead><tbody>{body}</tbody></table></div>{advice}{caution}"
        '<p class="lead">ρ is positive where more shift goes with more loss. p is by permuting '
        "the sites' names, since pairs that share a site are not independent.</p>"
        f"{_pair_table(run)}",
    )


def _pair_table(run: Run) -> str:
    """All of ``shift.csv`` by pair, with the drop both ways; too long to read for many sites."""
    if len(run.sites) > MANY_SITES:
        return ""
    metrics = sorted({row["metric"] for row in run.shift})
    value = {(row["site_a"], row["site_b"], row["metric"]): row["value"] for row in run.shift}
    head = "".join(f'<th scope="col">{escape(shift_label(name))}</th>' for name in metrics)
    body = ""
    for first, second in sorted({pair[:2] for pair in value}):
        cells = "".join(
            f"<td>{_dash(value.get((first, second, name), np.nan), 3)}</td>" for name in metrics
        )
        drops = "".join(
            f"<td>{_dash(run.drops.get(way, np.nan), 3)}</td>"
            for way in ((first, second), (second, first))
        )
        body += f'<tr><th scope="row">{escape(first)} – {escape(second)}</th>{cells}{drops}</tr>'
    return (
        '<details><summary>Every pair of sites</summary><div class="scroll"><table><thead><tr>'
        f'<th scope="col" class="text">pair</th>{head}<th scope="col">Dice lost, first at second'
        f'</th><th scope="col">second at first</th></tr></thead><tbody>{body}</tbody></table>'
        "</div></details>"
    )


def _examples(run: Run) -> str:
    paths = sorted((run.folder / "figures").glob("examples_*.png"))
    if not paths:
        return ""
    shown = "".join(
        figure(path.read_bytes(), f"examples at {path.stem.removeprefix('examples_')}")
        for path in paths[:MAX_EXAMPLES]
    )
    left_out = len(paths) - MAX_EXAMPLES
    more = f" {left_out} more are in <code>figures/</code>." if left_out > 0 else ""
    return section(
        "Examples",
        '<p class="lead">Test slices with the contours of the truth and of the models. They are '
        "drawn where the images are and never leave the site; this page shows them because the "
        f"federation was simulated on one machine.{more}</p>{shown}",
    )


def _egress(run: Run, figures: Mapping[str, bytes]) -> str:
    if run.in_turn:
        return ""
    if not run.egress:
        return section("What left each site", "<p>The ledger is empty.</p>")
    purposes = sorted({purpose for sent in run.egress.values() for purpose in sent})
    many = len(run.egress) > MANY_SITES
    sites = [] if many else sorted(run.egress)
    lines, totals = [], dict.fromkeys(run.egress, 0)
    for purpose in purposes:
        sent = {site: found[purpose] for site, found in run.egress.items() if purpose in found}
        for site, item in sent.items():
            totals[site] += item.bytes
        cells = "".join(
            f"<td>{format_bytes(sent[site].bytes) if site in sent else '–'}</td>" for site in sites
        )
        amounts = [item.bytes for item in sent.values()]
        spread = f"<td>{len(sent)}</td><td>{format_bytes(max(amounts))}</td>" if many else ""
        lines.append(
            f'<tr><th scope="row">{escape(purpose)}</th>{cells}{spread}'
            f"<td>{sum(item.records for item in sent.values()):,}</td>"
            f"<td>{format_bytes(sum(amounts))}</td>"
            f'<td class="text">{_record_names(sent.values())}</td></tr>'
        )
    head = "".join(f'<th scope="col">{escape(site)}</th>' for site in sites)
    foot = "".join(f"<td>{format_bytes(totals[site])}</td>" for site in sites)
    if many:
        head = '<th scope="col">sites</th><th scope="col">most at one site</th>'
        foot = f"<td>{len(totals)}</td><td>{format_bytes(max(totals.values()))}</td>"
    records = sum(item.records for found in run.egress.values() for item in found.values())
    picture = figure(figures["egress.png"], "egress.png", "Bytes that left, over the whole run.")
    return section(
        "What left each site",
        '<p class="lead">Every tensor and every number that left a site, summed from the ledger '
        "that the site keeps (<code>egress.jsonl</code>, one line a record). The pooled reference "
        "is left out: it is trained by no real site.</p>"
        '<div class="scroll"><table><thead><tr><th scope="col" class="text">purpose</th>'
        f'{head}<th scope="col">records</th><th scope="col">total</th>'
        f'<th scope="col" class="text">what</th></tr></thead><tbody>{"".join(lines)}</tbody>'
        f'<tfoot><tr><th scope="row">all</th>{foot}<td>{records:,}</td>'
        f"<td>{format_bytes(sum(totals.values()))}</td><td></td></tr></tfoot></table></div>{picture}",
    )


def _record_names(sent: Iterable[Sent]) -> str:
    """``answer: details, site; arrays: 64 names``: the records, by what they belong to."""
    kinds: dict[str, list[str]] = {}
    for name in sorted(set().union(*(item.names for item in sent))):
        kind, _, rest = name.partition("/")
        kinds.setdefault(kind, []).append(rest)
    parts = [
        kind + ": " + (", ".join(names) if len(names) <= 3 else f"{len(names)} names")
        for kind, names in kinds.items()
    ]
    return f"<small>{escape('; '.join(parts))}</small>"


def _sites(run: Run) -> str:
    if not run.cards:
        return ""
    lines = []
    for name in (site for site in run.sites if site in run.cards):
        card = run.cards[name]
        splits = "".join(
            f"<td>{_split(card['splits'].get(split))}</td>" for split in ("train", "val", "test")
        )
        spacing = " × ".join(_range(axis) for axis in zip(*card["spacing_mm"], strict=True))
        role = "<small>unseen: trains nothing</small>" if card["role"] == "unseen" else ""
        notes = "<br>".join(escape(note) for note in card["notes"])
        lines.append(
            f'<tr><th scope="row">{escape(name)}{role}</th>'
            f'<td class="text name">{escape(", ".join(card["vendors"]))}</td>{splits}'
            f'<td class="name">{escape(spacing)}</td>'
            f'<td class="text"><small>{notes}</small></td></tr>'
        )
    table = (
        '<div class="scroll"><table><thead><tr><th scope="col" class="text">site</th>'
        '<th scope="col" class="text">vendor</th><th scope="col">train</th>'
        '<th scope="col">validation</th><th scope="col">test</th>'
        '<th scope="col">spacing (mm)</th><th scope="col" class="text">notes</th></tr></thead>'
        f"<tbody>{''.join(lines)}</tbody></table></div>{_teaching(run)}"
    )
    if len(lines) > LISTED_SITES:
        table = f"<details><summary>All {len(lines)} sites</summary>{table}</details>"
    return section("Sites", table)


def _teaching(run: Run) -> str:
    """Which site teaches which structure, where not every site teaches all."""
    cards = {name: run.cards[name] for name in run.sites if name in run.cards}
    taught = {name: card["teaches"] for name, card in cards.items() if card.get("teaches")}
    taught = {name: counts for name, counts in taught.items() if any(counts.values())}
    if all(len(set(counts.values())) == 1 for counts in taught.values()):
        return ""
    structures = list(dict.fromkeys(name for counts in taught.values() for name in counts))
    head = "".join(f'<th scope="col">{escape(name)}</th>' for name in structures)
    body = "".join(
        f'<tr><th scope="row">{escape(site)}</th>'
        + "".join(f"<td>{counts.get(name) or '–'}</td>" for name in structures)
        + "</tr>"
        for site, counts in taught.items()
    )
    return (
        '<h3>Who teaches what</h3><p class="lead">Labelled training slices whose label tells of a '
        "structure. Where a site's does not, the structure is neither trained as background nor "
        "scored.</p>"
        f'<div class="scroll"><table><thead><tr><th scope="col" class="text">site</th>{head}</tr>'
        f"</thead><tbody>{body}</tbody></table></div>"
    )


def _range(values: Sequence[float]) -> str:
    low, high = f"{min(values):.3g}", f"{max(values):.3g}"
    return low if low == high else f"{low}–{high}"


def _split(counts: Mapping[str, int] | None) -> str:
    if not counts or not counts["cases"]:
        return "–"
    return (
        f"{count(counts['subjects'], 'subject')}<small>{count(counts['cases'], 'case')}, "
        f"{counts['labelled']} of {count(counts['slices'], 'slice')} labelled</small>"
    )


def _problems(run: Run) -> str:
    if not (run.rounds or run.folds):
        return ""
    body = ""
    if not run.problems:
        body = "<p>Training: every site asked answered, and every update was used.</p>"
    else:
        lines = "".join(
            f'<tr><th scope="row">{escape(problem.site)}</th>'
            f'<td class="text">{escape(problem.kind)}</td>'
            f'<td>{len(problem.rounds)}</td><td class="text">{_ranges(problem.rounds)}</td>'
            f'<td class="text">{escape(problem.reason)}</td></tr>'
            for problem in run.problems[:LISTED_SITES]
        )
        left_out = len(run.problems) - LISTED_SITES
        more = f"<p>And {left_out} more, in <code>rounds.jsonl</code>.</p>"
        body = (
            '<div class="scroll"><table><thead><tr><th scope="col" class="text">site</th>'
            '<th scope="col" class="text">what</th><th scope="col">times</th>'
            '<th scope="col" class="text">rounds</th><th scope="col" class="text">reason</th>'
            f"</tr></thead><tbody>{lines}</tbody></table></div>{more if left_out > 0 else ''}"
        )
    if run.missing:
        items = "".join(f"<li>{escape(note)}</li>" for note in run.missing[:MAX_MISSING])
        left_out = len(run.missing) - MAX_MISSING
        more = f"<li>and {left_out} more, in <code>checkpoints/evaluation.json</code></li>"
        body += (
            "<p>Missing from the evaluation after the last round:</p>"
            f"<ul>{items}{more if left_out > 0 else ''}</ul>"
        )
    elif run.cross_site:
        body += "<p>Evaluation: nothing is missing.</p>"
    return section("Failures and rejected updates", body, "problems")


def _ranges(rounds: Sequence[int]) -> str:
    """Round numbers in order, runs of them joined: ``1–3, 7``."""
    spans: list[list[int]] = []
    for number in sorted(rounds):
        if spans and number == spans[-1][1] + 1:
            spans[-1][1] = number
        else:
            spans.append([number, number])
    return ", ".join(f"{low}–{high}" if high > low else f"{low}" for low, high in spans)


def _config(run: Run) -> str:
    return section(
        "Configuration",
        "<details><summary>The whole resolved configuration</summary>"
        f"<pre>{escape(run.config_text)}</pre></details>",
    )
