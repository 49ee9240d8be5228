"""What each entrant gives each site, and how they rank over them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from html import escape

import numpy as np

from fedshift.protocol.words import count
from fedshift.server.comparison import words
from fedshift.server.comparison.ranking import Result
from fedshift.server.comparison.words import gain, p_words
from fedshift.server.report.figures import MANY_SITES, shade
from fedshift.server.report.html import breakable, figure, section, shaded


def at_sites(result: Result) -> str:
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
        body += f'<tr><th scope="row">{breakable(row.title)}</th>{cells}</tr>'
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


def critical_difference(result: Result, figures: Mapping[str, bytes]) -> str:
    """How the entrants rank over sites, or what that would take."""
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


def single_site_models(result: Result, figures: Mapping[str, bytes]) -> str:
    """What each site's own model reaches elsewhere; empty without the figure."""
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
