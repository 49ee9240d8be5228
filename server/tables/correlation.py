"""Does shift between two sites predict what a model loses between them?"""

from __future__ import annotations

import itertools
import math
from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.stats import rankdata

from fedshift import derive_seed
from fedshift.protocol.measures import Measure
from fedshift.server.tables.overview import mean

PERMUTATIONS = 2000


@dataclass(frozen=True)
class RankCorrelation:
    """Spearman's rho of a shift metric with the drop, over ``n_pairs`` ordered pairs of sites.

    ``rho`` and ``p_value`` are nan when the shift or the drop is the same for every pair, or there
    is no pair.
    """

    metric: str
    rho: float
    p_value: float
    n_pairs: int


def rank_correlation(
    shift_rows: Sequence[Mapping[str, Any]],
    cross_site_rows: Sequence[Mapping[str, Any]],
    measure: Measure,
    seed: int = 0,
    skip: Collection[str] = (),
    sampled: bool = False,
) -> list[RankCorrelation]:
    """Correlate each shift metric with what the local models lose, sorted by the metric's name.

    For an ordered pair (a, b) the drop is how much worse the local model of site a does at b than
    at home, in ``measure``. A shift metric has a row for (a, b), or one for both directions. Pairs
    share sites and are not independent, so the p-value is that of a Mantel test (Mantel 1967,
    Cancer Research 27:209): the sites are renamed jointly in the shift matrix, in every possible
    way up to six sites and in ``PERMUTATIONS`` ways beyond, and the p-value is the share of
    namings, the true one among them, with an absolute rho at least as large. Renaming needs the
    shift of every pair, so sites whose shift to others is missing or not finite are left out, the
    one with the most gaps first. Where only ``sampled`` pairs have a shift, the sites are renamed
    in the drops instead, which comes to the same, and sites whose drop at others is missing are
    left out. ``skip`` names the rows' metrics that are no distances, such as p-values. Raises
    ``ValueError`` for a ``measure`` of which neither more nor less is better.
    """
    drops = lost(cross_site_rows, measure)
    scored = sorted({site for pair in drops for site in pair})
    shifts: dict[str, dict[tuple[str, str], float]] = defaultdict(dict)
    for row in shift_rows:
        if row["metric"] not in skip:
            shifts[row["metric"]][row["site_a"], row["site_b"]] = row["value"]

    result = []
    for name, shift in sorted(shifts.items()):
        if sampled:
            values = _both_ways(shift)
            seen = {site for pair in values for site in pair}
            sites, matrix = _complete([site for site in scored if site in seen], drops)
        else:
            sites, matrix = _complete(scored, shift, mirrored=True)
            values = drops
        index = {site: position for position, site in enumerate(sites)}
        pairs = [(a, b) for a, b in values if a in index and b in index]
        rho, p_value = math.nan, math.nan
        if pairs:
            at = np.array([[index[a], index[b]] for a, b in pairs])
            rng = np.random.default_rng(derive_seed(seed, "rank correlation", name, measure.name))
            rho, p_value = _mantel(matrix, at, np.array([values[pair] for pair in pairs]), rng)
        result.append(RankCorrelation(name, rho, p_value, len(pairs)))
    return result


def _both_ways(shift: Mapping[tuple[str, str], float]) -> dict[tuple[str, str], float]:
    """The finite values by ordered pair; one row may stand for both ways."""
    known = {pair: value for pair, value in shift.items() if math.isfinite(value)}
    return {(b, a): value for (a, b), value in known.items()} | known


def lost(
    cross_site_rows: Sequence[Mapping[str, Any]], measure: Measure
) -> dict[tuple[str, str], float]:
    """What each local model loses from home to another site, the mean over the parts that
    both sites score; sorted by home, then site."""
    sign = measure.sign
    values: dict[str, dict[str, dict[str, float]]] = defaultdict(lambda: defaultdict(dict))
    for row in cross_site_rows:
        if row["model"] == "local" and row["metric"] == measure.name:
            values[row["trained_on"]][row["site"]][row["part"]] = row["mean"]
    drops = {}
    for home, by_site in sorted(values.items()):
        for site, found in sorted(by_site.items()):
            own = by_site.get(home, {})
            common = [name for name in found if name in own]
            if site != home and common:
                drop = mean(own[name] for name in common) - mean(found[name] for name in common)
                drops[home, site] = sign * drop
    return drops


def _complete(
    sites: list[str], values: Mapping[tuple[str, str], float], mirrored: bool = False
) -> tuple[list[str], np.ndarray]:
    """The sites between all of which the value is known, and its matrix (diagonal 0); ``mirrored``
    where one row stands for both ways."""
    matrix = np.zeros((len(sites), len(sites)))
    for (i, a), (j, b) in itertools.permutations(enumerate(sites), 2):
        other = values.get((b, a), math.nan) if mirrored else math.nan
        matrix[i, j] = values.get((a, b), other)
    kept = np.arange(len(sites))
    while not np.isfinite(inside := matrix[np.ix_(kept, kept)]).all():
        gaps = ~np.isfinite(inside)
        kept = np.delete(kept, np.argmax(gaps.sum(axis=0) + gaps.sum(axis=1)))
    return [sites[index] for index in kept], inside


def _mantel(
    matrix: np.ndarray, at: np.ndarray, drop: np.ndarray, rng: np.random.Generator
) -> tuple[float, float]:
    """Rho of ``matrix`` at the index pairs (n, 2) with the values ``drop`` (n,) there, and its
    p-value by renaming the sites of the matrix."""
    if np.ptp(drop) == 0 or np.ptp(matrix[at[:, 0], at[:, 1]]) == 0:
        return math.nan, math.nan
    sites = np.arange(len(matrix))
    if math.factorial(len(sites)) <= PERMUTATIONS:
        namings = np.array(list(itertools.permutations(sites)))
    else:
        drawn = rng.permuted(np.tile(sites, (PERMUTATIONS - 1, 1)), axis=1)
        namings = np.vstack([sites, drawn])
    drop_ranks = rankdata(drop) - (len(drop) + 1) / 2
    # Where every pair takes part, a renaming only moves the values about, and their ranks along.
    closed = len(at) == len(sites) * (len(sites) - 1)
    if closed:
        ranked = np.zeros(matrix.shape)
        ranked[at[:, 0], at[:, 1]] = rankdata(matrix[at[:, 0], at[:, 1]])
        matrix = ranked
    rhos = []
    for block in np.array_split(namings, math.ceil(len(namings) * len(drop) / 1_000_000)):
        shift = matrix[block[:, at[:, 0]], block[:, at[:, 1]]]
        ranks = (shift if closed else rankdata(shift, axis=1)) - (len(drop) + 1) / 2
        scale = np.sqrt((ranks**2).sum(axis=1) * (drop_ranks**2).sum())
        # A naming under which the shift is the same for every pair correlates with nothing.
        rhos.append((ranks * drop_ranks).sum(axis=1) / np.where(scale > 0, scale, np.inf))
    rho = np.concatenate(rhos)
    return float(rho[0]), float(np.mean(np.abs(rho) >= abs(rho[0]) - 1e-12))
