"""What the cross-site matrix says of each model."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fedshift.protocol.measures import Measure


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
    parts. Raises ``ValueError`` for a measure of which neither more nor less is better.
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
    """The mean over parts for each (model, trained_on) and site, all sorted by name."""
    values: dict[tuple[str, str], dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for row in cross_site_rows:
        if row["metric"] == measure.name:
            values[row["model"], row["trained_on"]][row["site"]].append(row["mean"])
    return {
        model: {site: mean(means) for site, means in sorted(sites.items())}
        for model, sites in sorted(values.items())
    }


def mean(values: Iterable[float]) -> float:
    """Their mean, summed exactly; nan of none."""
    found = list(values)
    return math.fsum(found) / len(found) if found else math.nan
