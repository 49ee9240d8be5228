"""The ranked table of a comparison: every entrant's standing, overall and at each site."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from fedshift.server.comparison import training
from fedshift.server.comparison.read import METRICS, Comparison, Entrant
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
where all entrants share two seeds or more, over other seeds too."""

DICE, HD95 = METRICS.index("dice"), METRICS.index("hd95_mm")


@dataclass(frozen=True)
class Standing:
    """An entrant's row of the table, in Dice unless said otherwise; nan for what is not known.

    ``seeds`` counts its finished cells out of ``cells``, ``failed`` those that failed. ``place`` is
    1 for the best and 0 without one, as for an ``upper_bound`` (pooled training). ``mean``,
    ``worst`` and ``gap`` (best minus worst site) are over the sites that rank the entrants; the
    intervals of the last two hold the named sites fixed. ``unseen`` is the mean over the sites
    that take no part, ``mean_rank`` that over the ranking sites, 1 the best. ``seed_std`` is the
    standard deviation of the mean between seeds (n - 1). ``bytes`` (down and up) and ``seconds``
    (of the rounds) are those of a whole run, the mean over seeds. ``dice_at_hours`` is on
    validation, after ``hours`` of simulated time.

    ``difference`` is the mean gain on the baseline over the same sites, subjects and seeds,
    ``subjects`` how many these are, ``p_subjects`` the signed-rank test over them, with
    ``signed_ranks`` its sum of signed ranks (positive: gains prevail). ``p_seeds`` is the t-test
    over ``shared_seeds`` repeated trainings: those of all entrants that have two or more with the
    baseline. ``_holm`` are both after Holm's correction over all
    entrants tested.
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
    hd95_mm: float = math.nan
    bytes: float = math.nan
    seconds: float = math.nan
    hours: float = math.nan
    dice_at_hours: float = math.nan
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
    """An entrant at one site: its Dice over ``subjects``, what it gains there on the baseline (over
    the subjects and seeds that both have), and its HD95 in mm."""

    dice: Estimate
    difference: Estimate
    hd95_mm: float
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
    at_site = {
        entrant.name: {
            site: found
            for site in comparison.sites
            if (found := _at_site(entrant, baseline, site)) is not None
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
        key=lambda row: -row.mean.value,
    )
    competing = [row.entrant for row in scored if not row.upper_bound]
    dice = np.array(
        [[at_site[name][site].dice.value for name in competing] for site in comparison.trained]
    )
    places = {name: place for place, name in enumerate(competing, start=1)}
    ranks = dict(zip(competing, mean_ranks(dice).tolist(), strict=True)) if competing else {}
    scored = [
        replace(
            row,
            place=places.get(row.entrant, 0),
            mean_rank=ranks.get(row.entrant, math.nan),
        )
        for row in scored
    ]
    rest = [row for row in rows if not row.mean.known]
    return Result(
        comparison, (*scored, *rest), at_site, friedman(dice) if len(competing) > 2 else None
    )


def _at_site(entrant: Entrant, baseline: Entrant, site: str) -> AtSite | None:
    found = np.array(list(entrant.subjects(site).values()))
    if not len(found):
        return None
    gains = paired(entrant, baseline, site)
    return AtSite(
        dice=estimate({site: found[:, DICE]}, {site: 1.0}),
        difference=UNKNOWN if entrant is baseline else estimate({site: gains}, {site: 1.0}),
        hd95_mm=float(found[:, HD95].mean()),
        subjects=len(found),
    )


def paired(entrant: Entrant, baseline: Entrant, site: str) -> np.ndarray:
    """What ``entrant`` gains on ``baseline`` in Dice, for each subject (n,) that both were tested
    on, by name; each over the seeds that both finished with that subject in the test split."""
    gains = []
    for subject, by_seed in sorted(entrant.scores.get(site, {}).items()):
        other = baseline.scores.get(site, {}).get(subject, {})
        shared = [
            by_seed[seed][DICE] - other[seed][DICE] for seed in sorted(by_seed) if seed in other
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
        dice_at_hours=math.nan if math.isnan(hours) else training.dice_at(runs, hours),
    )
    if not comparison.trained or not set(comparison.trained) <= set(found):
        return row
    values = {site: np.array(list(entrant.subjects(site).values()))[:, DICE] for site in found}
    means = {site: found[site].dice.value for site in comparison.trained}
    # Of equal sites the first by name.
    worst = min(means, key=lambda site: (means[site], site))
    best = min(means, key=lambda site: (-means[site], site))
    by_seed = list(_means_by_seed(entrant, comparison.trained).values())
    row = replace(
        row,
        mean=estimate(values, _evenly(comparison.trained)),
        seed_std=float(np.std(by_seed, ddof=1)) if len(by_seed) > 1 else math.nan,
        worst_site=worst,
        worst=estimate(values, {worst: 1.0}),
        best_site=best,
        gap=estimate(values, {best: 1.0, worst: -1.0}) if best != worst else Estimate(0.0),
        unseen=estimate(values, _evenly(comparison.unseen)),
        hd95_mm=float(np.mean([found[site].hd95_mm for site in comparison.trained])),
    )
    if entrant is baseline:
        return row
    gains = {site: paired(entrant, baseline, site) for site in comparison.trained}
    together = np.concatenate(list(gains.values()))
    p_value, signed_ranks = signed_rank(together)
    return replace(
        row,
        difference=estimate(gains, _evenly(comparison.trained)),
        subjects=len(together),
        signed_ranks=signed_ranks,
        p_subjects=p_value,
    )


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
            float(np.mean([score[DICE] for score in tested.values()]))
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
    return [replace(row, outcome=_outcome(row)) for row in tested]


def _outcome(row: Standing) -> Outcome:
    if not row.difference.known:
        return row.outcome
    if math.isnan(row.p_subjects):
        return "n too small"
    # Where sites differ much in size, the mean over sites and most subjects may disagree.
    agree = row.difference.value * row.signed_ranks > 0
    if row.p_subjects_holm >= LEVEL or row.p_seeds_holm >= LEVEL or not agree:
        return "not shown"
    return "better" if row.difference.value > 0 else "worse"
