"""The report page: one HTML file that needs no other file and no network."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape
from pathlib import Path
from urllib.parse import quote

import numpy as np

from fedshift.protocol.storage import write_atomic
from fedshift.protocol.words import count, some
from fedshift.server.report.answer import Answer, answer
from fedshift.server.report.figures import draw_all
from fedshift.server.report.html import document, figure, section
from fedshift.server.report.run import Run, read_run
from fedshift.server.report.sections import federation, scores, training
from fedshift.server.report.sections.matrices import about

MAX_EXAMPLES = 12
FEW_PICTURES = 6
MAX_NOTES = 20


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
        scores.every_model(run, figures),
        scores.whole_splits(run),
        scores.some_cases(run),
        _folds(run),
        _method(run),
        training.training(run, figures),
        training.shift(run, figures),
        scores.evaluated_later(run),
        _examples(run),
        federation.egress(run, figures),
        federation.sites(run),
        federation.problems(run),
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
    if not run.scored:
        return '<p class="answer">No model has been scored yet.</p>'
    found = answer(run)
    reach, title = run.headline.said, run.headline.title
    worst = f" (worst: {found.worst_site} {reach(found.worst)})" if found.sites > 1 else ""
    without = "without labels" if found.in_turn == "labels" else "left out"
    where = f", at the site {without}" if found.in_turn else ""
    tiles = [
        (found.federated, f"federated, mean {title}{where}{worst}"),
        (found.home, "single-site models at home"),
        (found.away, "single-site models at other sites"),
        (found.personal, "personalised models at home"),
        (found.pooled, "pooled: upper bound, simulation only"),
        (found.unseen_federated, f"federated at {_unseen_words(found)}"),
    ]
    shown = "".join(
        f'<div class="tile"><b>{reach(value)}</b><span>{escape(label)}</span></div>'
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
        f"<li><b>{escape(some(sites))}</b>: {escape(note)}</li>"
        for note, sites in sorted(sites_of.items(), key=lambda item: -len(item[1]))[:MAX_NOTES]
    ]
    if len(sites_of) > MAX_NOTES:
        said.append(f"<li>{len(sites_of) - MAX_NOTES} more notes stand below, by site.</li>")
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
            f'<details class="site"{opened}><summary>{escape(site)}{about(run, site)}'
            f"</summary>{shown}</details>"
        )
    return section(
        f"The method at work: {run.setting('method')}",
        '<p class="lead">What the method does with test images of each site, drawn with the '
        "finished model where the images are; like the examples below, these pictures never leave "
        f"a real site.</p>{sites}",
        "method",
    )


def _examples(run: Run) -> str:
    paths = sorted((run.folder / "figures").glob("examples_*.png"))
    if not paths and not run.undrawn:
        return ""
    undrawn = "".join(f"<li>{escape(note)}</li>" for note in run.undrawn)
    shown = f"<p>Could not be drawn:</p><ul>{undrawn}</ul>" if undrawn else ""
    shown += "".join(
        figure(path.read_bytes(), f"examples at {path.stem.removeprefix('examples_')}")
        for path in paths[:MAX_EXAMPLES]
    )
    left_out = len(paths) - MAX_EXAMPLES
    more = f" {left_out} more are in <code>figures/</code>." if left_out > 0 else ""
    return section(
        "Examples",
        '<p class="lead">Test slices with the truth and with what the models predict. They are '
        f"drawn where the images are and never leave the site{_because(run)}.{more}</p>{shown}",
    )


def _because(run: Run) -> str:
    if run.deployed:
        return ""
    return "; this page shows them because the federation was simulated on one machine"


def _config(run: Run) -> str:
    return section(
        "Configuration",
        "<details><summary>The whole resolved configuration</summary>"
        f"<pre>{escape(run.config_text)}</pre></details>",
    )
