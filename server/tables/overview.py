"""What the cross-site matrix says of each model."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fedshift.protocol.measures import Measure
from fedshift.protocol.messages import POOLED


@dataclass(frozen=True)
class Overview:
    """One model's row of the comparison, in the measure's unit; nan where there is no such site.

    ``macro_mean``, ``worst`` and ``gap`` (between best and worst, never negative) are over the
    sites that train, ``unseen`` over the others. ``home`` and ``away`` belong to a model of one
    site: its value there, and its mean over the other sites that train. ``vendors`` has the mean
    over all sites of each vendor; the sites of several vendors count as a vendor of their own,
    "A+B".
    """

    model: str
    trained_on: str
    macro_mean: float
    worst_site: str
    worst: float
    gap: float
    home: float
    away: float
    unseen: float
    vendors: dict[str, float]


def overview(
    cross_site_rows: Sequence[Mapping[str, Any]],
    measure: Measure,
    unseen: Collection[str] = (),
) -> list[Overview]:
    """Return each model's overview, sorted by model and ``trained_on``.

    ``unseen`` names the sites on which nothing is trained. A site's value is the mean over its
    :func:`comparable` parts. Raises ``ValueError`` for a measure of which neither more nor less is
    better.
    """
    sign = measure.sign
    vendor_of = {row["site"]: row["vendor"] for row in cross_site_rows}
    result = []
    for (model, trained_on), values in site_values(cross_site_rows, measure).items():
        seen = {site: value for site, value in values.items() if site not in unseen}
        worst_site = min(seen, key=lambda site: sign * values[site], default="")
        by_vendor: dict[str, list[float]] = defaultdict(list)
        for site, value in values.items():
            by_vendor[vendor_of[site]].append(value)
        away = [value for site, value in seen.items() if site != trained_on != "all"]
        result.append(
            Overview(
                model=model,
                trained_on=trained_on,
                macro_mean=mean(seen.values()),
                worst_site=worst_site,
                worst=seen.get(worst_site, math.nan),
                gap=max(seen.values()) - min(seen.values()) if seen else math.nan,
                home=values.get(trained_on, math.nan),
                away=mean(away),
                unseen=mean(value for site, value in values.items() if site in unseen),
                vendors={vendor: mean(found) for vendor, found in sorted(by_vendor.items())},
            )
        )
    return result


def site_values(
    cross_site_rows: Sequence[Mapping[str, Any]], measure: Measure
) -> dict[tuple[str, str], dict[str, float]]:
    """The mean over the :func:`comparable` parts for each (model, trained_on) and site, all sorted
    by name."""
    values: dict[tuple[str, str], dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for row in comparable(cross_site_rows, measure):
        values[row["model"], row["trained_on"]][row["site"]].append(row["mean"])
    return {
        model: {site: mean(means) for site, means in sorted(sites.items())}
        for model, sites in sorted(values.items())
    }


def comparable(
    cross_site_rows: Sequence[Mapping[str, Any]], measure: Measure
) -> list[Mapping[str, Any]]:
    """The rows of ``measure`` whose means over parts compare at a site: of the parts that count
    there, and of the models that were scored on all of these.

    A part counts on which every model made for all sites or for this one was scored; where there is
    no such model, every model there. So a part that a site's own model was never taught counts for
    none, and the model of another site that lacks a part has no mean.
    """
    rows = [row for row in cross_site_rows if row["metric"] == measure.name]
    scored = _scored_parts(rows)
    count = {site: _counting(site, parts) for site, parts in scored.items()}
    return [
        row
        for row in rows
        if row["part"] in count[row["site"]]
        and count[row["site"]] <= scored[row["site"]][row["model"], row["trained_on"]]
    ]


def narrowed(
    cross_site_rows: Sequence[Mapping[str, Any]], measure: Measure
) -> dict[str, tuple[set[str], set[str]]]:
    """The parts of ``measure`` that count at a site (:func:`comparable`) and those that do not, for
    each site where not every model was scored on the same."""
    scored = _scored_parts([row for row in cross_site_rows if row["metric"] == measure.name])
    found = {}
    for site, parts in sorted(scored.items()):
        every = set.union(*parts.values())
        if any(of != every for of in parts.values()):
            count = _counting(site, parts)
            found[site] = count, every - count
    return found


def _scored_parts(
    rows: Sequence[Mapping[str, Any]],
) -> dict[str, dict[tuple[str, str], set[str]]]:
    """The parts that each (model, trained_on) was scored on at each site."""
    found: dict[str, dict[tuple[str, str], set[str]]] = defaultdict(lambda: defaultdict(set))
    for row in rows:
        found[row["site"]][row["model"], row["trained_on"]].add(row["part"])
    return found


def _counting(site: str, parts: Mapping[tuple[str, str], set[str]]) -> set[str]:
    made = [of for (_, trained_on), of in parts.items() if trained_on in (POOLED, site)]
    return set.intersection(*(made or parts.values()))


def mean(values: Iterable[float]) -> float:
    """Their mean, summed exactly; nan of none."""
    found = list(values)
    return math.fsum(found) / len(found) if found else math.nan
