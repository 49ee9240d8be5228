"""How the models came about, and how far apart the sites are."""

from __future__ import annotations

import math
from collections.abc import Mapping
from html import escape

import numpy as np

from fedshift.protocol.words import count
from fedshift.server.report.figures import MANY_SITES
from fedshift.server.report.html import figure, section
from fedshift.server.report.run import Run
from fedshift.server.report.words import format_bytes, shift_label


def training(run: Run, figures: Mapping[str, bytes]) -> str:
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
        if run.validation[run.main_arm]
        else "The training loss alone: no site told what it reaches on its validation split "
        "(validate_every, or the sites' policies).",
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


def shift(run: Run, figures: Mapping[str, bytes]) -> str:
    if run.in_turn:
        return ""
    title = "How far apart the sites are, and what it costs"
    if not run.shift:
        why = ": there is one site, and shift is between two" if len(run.sites) == 1 else ""
        return section(title, f"<p>No shift between sites was measured{why}.</p>")
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
            f"<p>Shift was measured but cannot be set against a {_loss(run)}: that takes {takes}."
            "</p>"
            f"{told}{advice}{_pair_table(run)}",
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
        f"A point is an ordered pair of sites: the {run.headline.worsening} of a site's own model "
        "at the other site, against the shift between the two, measured from "
        "summaries and never from images.",
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
        f'<th scope="col" class="text">pair</th>{head}<th scope="col">{_loss(run)}, first at '
        f'second</th><th scope="col">second at first</th></tr></thead><tbody>{body}</tbody></table>'
        "</div></details>"
    )


def _loss(run: Run) -> str:
    """The loss between sites in words, before the first score too."""
    return escape(run.headline.worsening) if run.task else "loss"


def _dash(value: float, decimals: int) -> str:
    return "–" if np.isnan(value) else f"{value:.{decimals}f}"
