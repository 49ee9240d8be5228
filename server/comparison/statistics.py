"""The statistics of a comparison, on plain arrays.

- Bootstrap percentile intervals, subjects resampled within sites (Efron and Tibshirani, An
  Introduction to the Bootstrap, 1993, chapter 13).
- Wilcoxon signed-rank test (Wilcoxon, Individual Comparisons by Ranking Methods, Biometrics
  Bulletin 1, 1945) and Holm's correction (Holm, A Simple Sequentially Rejective Multiple Test
  Procedure, Scandinavian Journal of Statistics 6, 1979).
- Friedman's test and Nemenyi's critical difference (Demsar, Statistical Comparisons of Classifiers
  over Multiple Data Sets, JMLR 7, 2006, section 3.2).
- A t-test over repeated trainings, seeds as blocks (a two-way analysis of variance without
  replication; Montgomery, Design and Analysis of Experiments, chapter 4).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

from fedshift import derive_seed

DRAWS = 2000
PERMUTATIONS = 9999
LEVEL = 0.05
FEWEST_PAIRS = 6
"""With fewer pairs no signed-rank test can reach ``LEVEL``: 2 / 2^5 is more than 0.05."""


@dataclass(frozen=True)
class Estimate:
    """A value and its 95 % interval; nan for what is not known."""

    value: float = math.nan
    low: float = math.nan
    high: float = math.nan

    @property
    def known(self) -> bool:
        """Whether there is a value."""
        return not math.isnan(self.value)

    @property
    def has_interval(self) -> bool:
        """Whether there is an interval."""
        return not math.isnan(self.low)


UNKNOWN = Estimate()


def estimate(sites: Mapping[str, np.ndarray], weights: Mapping[str, float]) -> Estimate:
    """The weighted sum over sites of the mean over subjects, subjects resampled within sites.

    ``sites`` holds a value for each subject (n,), by site. Equal numbers of subjects are resampled
    alike, so that entrants are compared on the same draws. Without subjects at a site of
    ``weights`` nothing is known; with a single one anywhere there is no interval.
    """
    if not weights or any(not len(sites.get(site, ())) for site in weights):
        return UNKNOWN
    value = math.fsum(weight * float(sites[site].mean()) for site, weight in weights.items())
    if any(len(sites[site]) < 2 for site in weights):
        return Estimate(value)
    draws = np.zeros(DRAWS)
    for site, weight in sorted(weights.items()):
        draws += weight * _resampled_means(sites[site], site)
    low, high = np.percentile(draws, [2.5, 97.5])
    return Estimate(value, float(low), float(high))


def _resampled_means(values: np.ndarray, site: str) -> np.ndarray:
    rng = np.random.default_rng(derive_seed("comparison", "bootstrap", site))
    return np.asarray(values[rng.integers(len(values), size=(DRAWS, len(values)))].mean(axis=1))


def signed_rank(differences: np.ndarray) -> tuple[float, float]:
    """Wilcoxon's signed-rank test over paired ``differences`` (n,): the two-sided p-value, and the
    sum of the signed ranks, positive where gains prevail.

    Zero differences are dropped, as Wilcoxon did; when all are zero p is 1. p is exact up to 50
    pairs, or up to 13 where sizes tie, and by the normal approximation beyond; nan with fewer than
    ``FEWEST_PAIRS`` pairs, zeros among them.
    """
    # Differences that are equal but for rounding are ties, and tiny ones are zeros.
    rounded = np.round(differences, 12)
    moved = rounded[rounded != 0]
    signed_ranks = float((np.sign(moved) * stats.rankdata(np.abs(moved))).sum())
    if len(differences) < FEWEST_PAIRS:
        return math.nan, signed_ranks
    return (float(stats.wilcoxon(moved).pvalue) if len(moved) else 1.0), signed_ranks


def over_seeds(means: np.ndarray, baseline: int) -> np.ndarray:
    """The two-sided p-value of each entrant against the baseline over repeated trainings.

    ``means`` (seeds, entrants) are the entrants' means with each seed, ``baseline`` a column. All
    entrants share a seed's splits and initial weights, so that seeds are blocks: what is left of
    ``means`` without the effects of entrant and seed is how much training again moves an entrant,
    taken as equal for all. t has (seeds - 1)(entrants - 1) degrees of freedom. nan with one seed,
    and in the baseline's own column.
    """
    seeds, entrants = means.shape
    p_values = np.full(entrants, np.nan)
    if seeds < 2 or entrants < 2:
        return p_values
    of_entrant = means.mean(axis=0)
    residual = means - of_entrant - means.mean(axis=1, keepdims=True) + means.mean()
    freedom = (seeds - 1) * (entrants - 1)
    error = math.sqrt(2 * float((residual**2).sum()) / freedom / seeds)
    for column in range(entrants):
        if column != baseline:
            difference = abs(float(of_entrant[column] - of_entrant[baseline]))
            # Rounding alone leaves differences and errors of about 1e-17.
            t = 0.0 if difference < 1e-12 else difference / max(error, 1e-15)
            p_values[column] = 2 * stats.t.sf(t, freedom)
    return p_values


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's adjusted p-values, in the given order; nan stays nan and is not of the family."""
    family = sorted((p, index) for index, p in enumerate(p_values) if not math.isnan(p))
    adjusted = [math.nan] * len(p_values)
    largest = 0.0
    for place, (p, index) in enumerate(family):
        largest = max(largest, min(1.0, (len(family) - place) * p))
        adjusted[index] = largest
    return adjusted


@dataclass(frozen=True)
class Friedman:
    """Friedman's test over sites: each entrant's mean rank (entrants,), 1 the best, and whether
    they differ at all. Two entrants whose mean ranks are ``critical_difference`` or more apart
    differ by Nemenyi's test at ``LEVEL``."""

    ranks: np.ndarray
    sites: int
    statistic: float
    p_value: float
    critical_difference: float

    @property
    def can_differ(self) -> bool:
        """Whether the sites are enough for any two entrants to differ."""
        return self.critical_difference <= len(self.ranks) - 1


def mean_ranks(scores: np.ndarray) -> np.ndarray:
    """The mean over sites of each entrant's rank, 1 the highest score; ties share their ranks.

    ``scores`` is (sites, entrants).
    """
    return np.asarray(stats.rankdata(-np.round(scores, 12), axis=1).mean(axis=0))


def friedman(scores: np.ndarray) -> Friedman | None:
    """Test whether entrants rank alike at the sites; ``scores`` is (sites, entrants), higher is
    better. None with fewer than two sites or three entrants.

    The chi-squared and F approximations of Friedman's statistic fail at the few sites of a
    federation, so p is by ``PERMUTATIONS`` random orders of the entrants within each site.
    """
    sites, entrants = scores.shape
    if sites < 2 or entrants < 3:
        return None
    ranks = stats.rankdata(-np.round(scores, 12), axis=1)
    if np.ptp(ranks, axis=1).max() == 0:
        statistic, p_value = 0.0, 1.0
    else:
        statistic = float(stats.friedmanchisquare(*ranks.T).statistic)
        # The statistic grows with the squared rank sums alone, as orders change no rank within.
        observed = float((ranks.sum(axis=0) ** 2).sum())
        rng = np.random.default_rng(derive_seed("comparison", "friedman", sites, entrants))
        reached, block = 0, 1000
        for start in range(0, PERMUTATIONS, block):
            size = min(block, PERMUTATIONS - start)
            drawn = rng.permuted(np.tile(ranks, (size, 1, 1)), axis=2)
            reached += int(((drawn.sum(axis=1) ** 2).sum(axis=1) >= observed - 1e-9).sum())
        p_value = (1 + reached) / (1 + PERMUTATIONS)
    return Friedman(
        ranks.mean(axis=0), sites, statistic, p_value, critical_difference(entrants, sites)
    )


def critical_difference(entrants: int, sites: int) -> float:
    """Nemenyi's critical difference of mean ranks at ``LEVEL``: q sqrt(k (k + 1) / (6 N)), with q
    the studentised range of k means at infinite freedom, divided by sqrt(2)."""
    q = float(stats.studentized_range.ppf(1 - LEVEL, entrants, np.inf)) / math.sqrt(2)
    return q * math.sqrt(entrants * (entrants + 1) / (6 * sites))


def alike(ranks: np.ndarray, difference: float) -> list[tuple[float, float]]:
    """The bars of a critical-difference diagram: the first and last mean rank of each largest group
    of two or more entrants whose mean ranks all lie less than ``difference`` apart."""
    ordered = np.sort(ranks)
    bars: list[tuple[float, float]] = []
    for index, first in enumerate(ordered):
        last = ordered[np.flatnonzero(ordered - first < difference)[-1]]
        members = int(((ordered >= first) & (ordered <= last)).sum())
        inside = bars and last <= bars[-1][1]
        if members > 1 and not inside and (index == 0 or first > ordered[index - 1]):
            bars.append((float(first), float(last)))
    return bars
