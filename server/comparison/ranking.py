"""The ranked table of a comparison: every entrant's standing, overall and at each site."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from fedshift.server.comparison import training
from fedshift.server.comparison.read import HEADLINE, SECOND, Comparison, Entrant
from fedshift.server.comparison.statistics import (
    LEVEL,
    UNKNOWN,
    Estimate,
    Friedman,
    estimate,
    friedman,
    holm,
    mean_ranks,
    over_seeds,
    signed_rank,
)

Outcome = Literal["baseline", "better", "worse", "not shown", "n too small", "not tested"]
"""How an entrant stands to the baseline. ``better`` and ``worse`` hold over other subjects and,
where all entrants share two seeds or more, over other seeds too; of a headline that is measured of
whole splits, over other seeds alone."""


@dataclass(frozen=True)
class Standing:
    """An entrant's row of the table, in the headline's unit unless said otherwise; nan for what is
    not known.

    ``seeds`` counts its finished cells out of ``cells``, ``failed`` those that failed. ``place`` is
    1 for the best and 0 without one, as for an ``upper_bound`` (pooled training). ``mean``,
    ``worst`` and ``gap`` (between best and worst site) are over the sites that rank the entrants;
    the intervals of the last two hold the named sites fixed. ``unseen`` is the mean over the sites
    that take no part, ``mean_rank`` that over the ranking sites, 1 the best. ``seed_std`` is the
    standard deviation of the mean between seeds (n - 1). ``second`` is the mean of the task's
    second measure, in its own unit. ``bytes`` (down and up) and ``seconds`` (of the rounds) are
    those of a whole run, the mean over seeds. ``at_hours`` is on validation, after ``hours`` of
    simulated time.

    ``difference`` is the mean gain on the baseline, above 0 where it is better, over the same
    sites, subjects and seeds, ``subjects`` how many these are (none of a measure of whole splits),
    ``p_subjects`` the signed-rank test over them, with ``signed_ranks`` its sum of signed ranks
    (positive: gains prevail). ``p_seeds`` is the t-test over ``shared_seeds`` repeated trainings:
    those of all entrants that have two or more with the baseline. ``_holm`` are both after Holm's
    correction over all entrants tested.
    """

    entrant: str
    label: str
    cells: int
    seeds: int
    failed: int
    upper_bound: bool = False
    place: int = 0
    mean: Estimate = UNKNOWN
    seed_std: float = math.nan
    worst_site: str = ""
    worst: Estimate = UNKNOWN
    best_site: str = ""
    gap: Estimate = UNKNOWN
    unseen: Estimate = UNKNOWN
    mean_rank: float = math.nan
    second: float = math.nan
    bytes: float = math.nan
    seconds: float = math.nan
    hours: float = math.nan
    at_hours: float = math.nan
    difference: Estimate = UNKNOWN
    subjects: int = 0
    signed_ranks: float = math.nan
    p_subjects: float = math.nan
    p_subjects_holm: float = math.nan
    shared_seeds: int = 0
    p_seeds: float = math.nan
    p_seeds_holm: float = math.nan
    outcome: Outcome = "not tested"

    @property
    def title(self) -> str:
        """Its label, which says of pooled training what it is."""
        return f"{self.label} (upper bound)" if self.upper_bound else self.label


@dataclass(frozen=True)
class AtSite:
    """An entrant at one site: its headline over ``subjects`` (0 where it is of the whole split),
    what it gains there on the baseline (over the subjects and seeds that both have), and the second
    measure; nan without one."""

    headline: Estimate
    difference: Estimate
    second: float
    subjects: int


@dataclass(frozen=True)
class Result:
    """``standings`` are in the table's order, those without a mean last. ``at_site`` is by entrant
    and site, ``friedman`` over the ranked entrants, in the table's order."""

    comparison: Comparison
    standings: tuple[Standing, ...]
    at_site: Mapping[str, Mapping[str, AtSite]]
    friedman: Friedman | None

    @property
    def against(self) -> str:
        """The baseline as tables name it."""
        return next(row.label for row in self.standings if row.outcome == "baseline")

    @property
    def scored(self) -> tuple[Standing, ...]:
        """The entrants with a mean over all ranking sites."""
        return tuple(row for row in self.standings if row.mean.known)

    @property
    def ranked(self) -> tuple[Standing, ...]:
        """Those of them that compete, which an upper bound does not."""
        return tuple(row for row in self.standings if row.place)


def rank(comparison: Comparison, hours: float | None = None) -> Result:
    """Score, test and order the entrants.

    One that misses a ranking site is neither scored nor ranked, as a mean over fewer sites would
    not compare; pooled training is scored but, an upper bound, not ranked.
    ``hours`` is the simulated time at which entrants are also compared (the longest that all of
    them reached when not given).
    """
    baseline = next(item for item in comparison.entrants if item.name == comparison.baseline)
    sign = comparison.headline.sign
    at_site = {
        entrant.name: {
            site: found
            for site in comparison.sites
            if (found := _at_site(entrant, baseline, comparison, site)) is not None
        }
        for entrant in comparison.entrants
    }
    if hours is None:
        hours = training.common_hours(comparison)
    rows = [
        _standing(entrant, baseline, at_site[entrant.name], comparison, hours)
        for entrant in comparison.entrants
    ]
    scored = sorted(
        _tested([row for row in rows if row.mean.known], comparison),
        key=lambda row: -sign * row.mean.value,
    )
    competing = [row.entrant for row in scored if not row.upper_bound]
    higher_is_better = sign * np.array(
        [[at_site[name][site].headline.value for name in competing] for site in comparison.trained]
    )
    places = {name: place for place, name in enumerate(competing, start=1)}
    by_rank = mean_ranks(higher_is_better).tolist() if competing else []
    ranks = dict(zip(competing, by_rank, strict=True))
    scored = [
        replace(
            row,
            place=places.get(row.entrant, 0),
            mean_rank=ranks.get(row.entrant, math.nan),
        )
        for row in scored
    ]
    rest = [row for row in rows if not row.mean.known]
    tested = friedman(higher_is_better) if len(competing) > 2 else None
    return Result(comparison, (*scored, *rest), at_site, tested)


def _at_site(
    entrant: Entrant, baseline: Entrant, comparison: Comparison, site: str
) -> AtSite | None:
    found = np.array(list(entrant.subjects(site).values()))
    if not len(found):
        return None
    gains = paired(entrant, baseline, site, comparison.headline.sign)
    return AtSite(
        headline=estimate({site: found[:, HEADLINE]}, {site: 1.0}),
        difference=UNKNOWN if entrant is baseline else estimate({site: gains}, {site: 1.0}),
        second=float(found[:, SECOND].mean()) if comparison.second else math.nan,
        subjects=0 if comparison.headline.whole else len(found),
    )


def paired(entrant: Entrant, baseline: Entrant, site: str, sign: int) -> np.ndarray:
    """What ``entrant`` gains on ``baseline`` in the headline, whose ``sign`` is 1 where more is
    better, for each subject (n,) that both were tested on, by name; each over the seeds that both
    finished with that subject in the test split."""
    gains = []
    for subject, by_seed in sorted(entrant.scores.get(site, {}).items()):
        other = baseline.scores.get(site, {}).get(subject, {})
        shared = [
            sign * (by_seed[seed][HEADLINE] - other[seed][HEADLINE])
            for seed in sorted(by_seed)
            if seed in other
        ]
        if shared:
            gains.append(float(np.mean(shared)))
    return np.array(gains)


def _standing(
    entrant: Entrant,
    baseline: Entrant,
    found: Mapping[str, AtSite],
    comparison: Comparison,
    hours: float,
) -> Standing:
    """All of a row but the tests, its place and its ranks."""
    runs = training.trainings(entrant)
    row = Standing(
        entrant=entrant.name,
        label=entrant.label,
        cells=len(entrant.cells),
        seeds=sum(cell.status == "done" for cell in entrant.cells),
        failed=sum(cell.status == "failed" for cell in entrant.cells),
        upper_bound=entrant.pooled,
        outcome="baseline" if entrant is baseline else "not tested",
        bytes=training.spent(entrant, "bytes_down") + training.spent(entrant, "bytes_up"),
        seconds=training.spent(entrant, "seconds"),
        hours=hours,
        at_hours=math.nan if math.isnan(hours) else training.validation_at(runs, hours),
    )
    if not comparison.trained or not set(comparison.trained) <= set(found):
        return row
    sign = comparison.headline.sign
    values = {site: np.array(list(entrant.subjects(site).values()))[:, HEADLINE] for site in found}
    means = {site: found[site].headline.value for site in comparison.trained}
    # Of equal sites the first by name.
    worst = min(means, key=lambda site: (sign * means[site], site))
    best = min(means, key=lambda site: (-sign * means[site], site))
    by_seed = list(_means_by_seed(entrant, comparison.trained).values())
    row = replace(
        row,
        mean=estimate(values, _evenly(comparison.trained)),
        seed_std=float(np.std(by_seed, ddof=1)) if len(by_seed) > 1 else math.nan,
        worst_site=worst,
        worst=estimate(values, {worst: 1.0}),
        best_site=best,
        gap=estimate(values, {best: float(sign), worst: -float(sign)})
        if best != worst
        else Estimate(0.0),
        unseen=estimate(values, _evenly(comparison.unseen)),
        second=float(np.mean([found[site].second for site in comparison.trained])),
    )
    if entrant is baseline:
        return row
    gains = {site: paired(entrant, baseline, site, sign) for site in comparison.trained}
    row = replace(row, difference=estimate(gains, _evenly(comparison.trained)))
    if comparison.headline.whole:
        return row
    together = np.concatenate(list(gains.values()))
    p_value, signed_ranks = signed_rank(together)
    return replace(row, subjects=len(together), signed_ranks=signed_ranks, p_subjects=p_value)


def _evenly(sites: Sequence[str]) -> dict[str, float]:
    return dict.fromkeys(sites, 1 / len(sites)) if sites else {}


def _means_by_seed(entrant: Entrant, sites: Sequence[str]) -> dict[str, float]:
    """The mean over ``sites`` with each seed that has them all."""
    seeds = sorted(
        {seed for tested in entrant.scores.values() for by in tested.values() for seed in by}
    )
    found = {}
    for seed in seeds:
        means = [
            float(np.mean([score[HEADLINE] for score in tested.values()]))
            for site in sites
            if (tested := entrant.subjects(site, [seed]))
        ]
        if len(means) == len(sites):
            found[seed] = math.fsum(means) / len(means)
    return found


def _tested(rows: Sequence[Standing], comparison: Comparison) -> list[Standing]:
    """Add the test over seeds, Holm's correction and the outcome, to the rows with a mean."""
    by_seed = {
        entrant.name: _means_by_seed(entrant, comparison.trained) for entrant in comparison.entrants
    }
    baseline = by_seed[comparison.baseline]
    # One that shares a single seed with the baseline must not keep the others from being tested.
    names = [row.entrant for row in rows if len(baseline.keys() & by_seed[row.entrant].keys()) > 1]
    seeds = sorted(set.intersection(*(set(by_seed[name]) for name in names))) if names else []
    found: dict[str, float] = {}
    if seeds:
        means = np.array([[by_seed[name][seed] for name in names] for seed in seeds])
        p_values = over_seeds(means, names.index(comparison.baseline))
        found = dict(zip(names, p_values.tolist(), strict=True))
    p_seeds = [found.get(row.entrant, math.nan) for row in rows]
    corrected = zip(
        rows, holm([row.p_subjects for row in rows]), p_seeds, holm(p_seeds), strict=True
    )
    tested = [
        replace(
            row,
            p_subjects_holm=subjects_holm,
            shared_seeds=len(seeds)
            if row.entrant in found
            else len(baseline.keys() & by_seed[row.entrant].keys()),
            p_seeds=p,
            p_seeds_holm=seeds_holm,
        )
        for row, subjects_holm, p, seeds_holm in corrected
    ]
    whole = comparison.headline.whole
    return [replace(row, outcome=_outcome(row, whole)) for row in tested]


def _outcome(row: Standing, whole: bool) -> Outcome:
    """What the tests say: over subjects and seeds or, of a ``whole`` split, over seeds alone."""
    if not row.difference.known:
        return row.outcome
    if math.isnan(row.p_seeds if whole else row.p_subjects):
        return "n too small"
    # Where sites differ much in size, the mean over sites and most subjects may disagree.
    agree = whole or row.difference.value * row.signed_ranks > 0
    if row.p_subjects_holm >= LEVEL or row.p_seeds_holm >= LEVEL or not agree:
        return "not shown"
    return "better" if row.difference.value > 0 else "worse"
