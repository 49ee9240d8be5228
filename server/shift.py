"""How far apart the sites' images are, computed from what each site sent of them.

The order of calls: every site's summary -> :func:`questions` -> every site's answer ->
:func:`pairwise`. The arrays are those of :mod:`fedshift.protocol.statistics`;
``docs/shift.md`` defines each distance and says how to read it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import combinations, groupby
from operator import itemgetter
from typing import Any

import numpy as np
from scipy.special import rel_entr

from fedshift import derive_seed
from fedshift.protocol import statistics as names
from fedshift.protocol.frechet import frechet_distances, pool_moments
from fedshift.protocol.words import some
from fedshift.server.pairs import Pair

Statistics = Mapping[str, Mapping[str, np.ndarray]]
"""Site name -> statistic's name -> array."""

MMD_RELABELLINGS = 999
DOMAIN_RELABELLINGS = names.DOMAIN_RELABELLINGS
"""Each costs a direction that travels, so far fewer than for MMD: chance exceeds the largest of
19 with probability 1/20."""

_FAR = 4.0
"""How many times as far apart, or as close, as at most sites a site's features may lie (root mean
square) for it to count in the kernel widths."""

_NORM_EPS = 1e-5  # what the normalisation layers themselves add to a variance


@dataclass(frozen=True)
class _Distance:
    """A distance from one site to each of several others; symmetric, 0 for equal statistics.

    ``between`` is given this site's arrays and then the others' stacked along a first axis, both
    in the order of ``needs``, and returns one value for each other site.
    """

    metric: str
    needs: tuple[str, ...]
    between: Callable[..., np.ndarray]


def questions(
    statistics: Statistics, seed: int, pairs: Sequence[Pair] | None = None
) -> dict[str, dict[str, np.ndarray]]:
    """Form the second exchange's question to each site that sent a summary.

    Every site gets the kernel bandwidths; a site with at least two blocks also gets the
    directions and thresholds of its domain classifiers: for each such other site of its ``pairs``
    (None: of all) in order of name, the pair's linear discriminant, then ``DOMAIN_RELABELLINGS`` of
    relabelled blocks. Empty when fewer than two sites sent a summary. The widths, which are those
    of all pairs, are of the sites without :func:`odd_scales`.
    """
    sent = _summarised(statistics)
    if len(sent) < 2:
        return {}
    odd = odd_scales(statistics)
    scaling = [kept for site, kept in sent.items() if site not in odd]
    _, _, covariance = pool_moments(
        np.concatenate([kept[names.FEATURE_COUNT] for kept in scaling]),
        np.stack([kept[names.FEATURE_MEAN] for kept in scaling]),
        np.stack([kept[names.FEATURE_COVARIANCE] for kept in scaling]),
    )
    # Two independent images are sqrt(2 trace) apart in the root mean square. A scale no single
    # site could know: it needs the pooled moments, which is why there is a second exchange.
    spread = np.sqrt(2.0 * np.trace(covariance)) or 1.0
    bandwidths = spread * np.array(names.BANDWIDTH_FACTORS)
    asked: dict[str, dict[str, np.ndarray]] = {
        site: {names.BANDWIDTHS: bandwidths} for site in sorted(sent)
    }

    lines: dict[str, list[tuple[np.ndarray, np.ndarray]]] = {}
    for first, second in _pairs(_divisible(statistics), pairs):
        line = _discriminants(statistics[first], statistics[second], seed)
        # Pairs come in order of name, so each site's list is in the order of its other sites.
        lines.setdefault(first, []).append(line)
        lines.setdefault(second, []).append(line)
    for site, own in lines.items():
        asked[site][names.DIRECTIONS] = np.concatenate([directions for directions, _ in own])
        asked[site][names.THRESHOLDS] = np.concatenate([thresholds for _, thresholds in own])
    return asked


def odd_scales(statistics: Statistics) -> dict[str, str]:
    """Of three sites or more, those whose features vary :data:`_FAR` times more, or less, than most
    sites' and so have no part in the kernel widths, and how: one site, whatever it says of its
    images, moves the other sites' distances by no more than that."""
    sent = _summarised(statistics)
    if len(sent) < 3:
        return {}
    means = np.stack([kept[names.FEATURE_MEAN] for kept in sent.values()])
    within = np.array([np.trace(kept[names.FEATURE_COVARIANCE]) for kept in sent.values()])
    # About a middle that no single site can move far.
    about = within + ((means - np.median(means, axis=0)) ** 2).sum(axis=1)
    more = about > _FAR**2 * np.median(about)
    less = _FAR**2 * within < np.median(within)
    return {
        site: f"its features vary far {'more' if much else 'less'} than most sites', so the kernel "
        "widths of mmd are set without it"
        for site, much, little in zip(sent, more, less, strict=True)
        if much or little
    }


def _summarised(statistics: Statistics) -> dict[str, Mapping[str, np.ndarray]]:
    return {site: kept for site, kept in statistics.items() if names.FEATURE_MEAN in kept}


def pairwise(
    statistics: Statistics, answers: Statistics, seed: int, pairs: Sequence[Pair] | None = None
) -> tuple[list[dict[str, Any]], list[str]]:
    """Return the rows of ``shift.csv`` and what is missing from them, in sentences.

    A row is ``{site_a, site_b, metric, value}`` with ``site_a < site_b``, every one of the
    ``pairs`` (None: all that there are) once, sorted by pair and then as :data:`METRICS`. A
    metric's rows are left out for a site that did not send what it needs; the sentences name them.
    ``seed`` and ``pairs`` must be those of :func:`questions`.
    """
    sites = sorted(statistics)
    sent = {site: {**statistics[site], **answers.get(site, {})} for site in sites}
    values: dict[tuple[str, str, str], float] = {}
    for distance in _DISTANCES:
        having = [site for site in sites if all(name in sent[site] for name in distance.needs)]
        if len(having) < 2:
            continue
        stacks = [np.stack([sent[site][name] for site in having]) for name in distance.needs]
        place = {site: index for index, site in enumerate(having)}
        for first, group in groupby(_pairs(having, pairs), key=itemgetter(0)):
            others = [second for _, second in group]
            at = [place[second] for second in others]
            found = distance.between(
                *(stack[place[first]] for stack in stacks), *(stack[at] for stack in stacks)
            )
            for second, value in zip(others, found, strict=True):
                if not np.isnan(value):
                    values[first, second, distance.metric] = float(value)

    having = [site for site in sites if names.FOURIER_MEANS in sent[site]]
    for first, second in _pairs(having, pairs):
        discrepancy, p_value = _mmd(
            sent[first][names.FOURIER_MEANS], sent[second][names.FOURIER_MEANS], seed
        )
        values[first, second, "mmd"] = discrepancy
        values[first, second, "mmd_p"] = p_value

    # Where a pair's columns lie follows from who was asked, whether or not all answered.
    width = 1 + DOMAIN_RELABELLINGS
    columns: Counter[str] = Counter()
    for first, second in _pairs(_divisible(statistics), pairs):
        i, j = columns[first], columns[second]
        columns.update((first, second))
        if names.DOMAIN_COUNTS in sent[first] and names.DOMAIN_COUNTS in sent[second]:
            distances = _proxy_a(
                sent[first][names.DOMAIN_COUNTS][:, i * width : (i + 1) * width],
                sent[second][names.DOMAIN_COUNTS][:, j * width : (j + 1) * width],
                sent[first][names.BLOCK_COUNTS][names.HELD_OUT_BLOCKS],
                sent[second][names.BLOCK_COUNTS][names.HELD_OUT_BLOCKS],
                seed,
            )
            values[first, second, "proxy_a_distance"] = float(distances[0])
            values[first, second, "proxy_a_null95"] = float(distances[1:].max())

    rows = [
        {"site_a": first, "site_b": second, "metric": metric, "value": value}
        for (first, second, metric), value in sorted(
            values.items(), key=lambda item: (*item[0][:2], METRICS.index(item[0][2]))
        )
    ]
    return rows, _missing(sent)


def _pairs(sites: Sequence[str], pairs: Sequence[Pair] | None) -> Iterator[Pair]:
    """The pairs of ``sites``, sorted; only those of ``pairs`` where these are given."""
    if pairs is None:
        return combinations(sites, 2)
    among = set(sites)
    return (pair for pair in sorted(pairs) if among.issuperset(pair))


def _wasserstein(own: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Wasserstein-1 between histograms, their mass at the bins' middles, in image units."""
    edges = names.intensity_edges()
    gaps = np.diff((edges[1:] + edges[:-1]) / 2.0)
    difference = np.cumsum(_normalised(others) - _normalised(own), axis=1)
    return np.abs(difference[:, :-1]) @ gaps


def _jensen_shannon(own: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Jensen-Shannon distance, the square root of the divergence in bits: 0 to 1."""
    p, q = _normalised(own), _normalised(others)
    middle = (p + q) / 2.0
    divergence = (rel_entr(p, middle) + rel_entr(q, middle)).sum(axis=1) / (2.0 * np.log(2.0))
    return np.sqrt(np.maximum(divergence, 0.0))


def _spectrum(own: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Root mean square difference over frequency, in dB."""
    return np.sqrt(((others - own) ** 2).mean(axis=1))


def _norm_kl(
    mean: np.ndarray, variance: np.ndarray, means: np.ndarray, variances: np.ndarray
) -> np.ndarray:
    """KL(p, q) + KL(q, p) of each channel's Gaussians, averaged over the channels, in nats."""
    own, others = variance + _NORM_EPS, variances + _NORM_EPS
    apart = (means - mean) ** 2
    return (((own + apart) / others + (others + apart) / own) / 2.0 - 1.0).mean(axis=1)


def _comparable(own: np.ndarray, others: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Distributions of labels (K,) and (sites, K), each as (sites, K), of what both of a pair
    annotate: what is nan on either side counts as background, the first number, on both; it is
    left out where that is nan, as there is none. A pair with nothing in common is nan."""
    unknown = np.isnan(own) | np.isnan(others)
    found = []
    for volumes in (np.broadcast_to(own, others.shape), others):
        moved = np.where(unknown, np.nan_to_num(volumes), 0.0).sum(axis=1)
        kept = np.where(unknown, 0.0, volumes)
        kept[:, 0] += np.where(unknown[:, 0], 0.0, moved)
        kept[unknown[:, 1:].all(axis=1)] = np.nan
        found.append(kept)
    return found[0], found[1]


def _total_variation(own: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Half the summed difference of the shares: 0 to 1."""
    own, others = _comparable(own, others)
    return np.abs(_normalised(others) - _normalised(own)).sum(axis=1) / 2.0


def _label_shift(own: np.ndarray, others: np.ndarray) -> np.ndarray:
    """The total variation as a part of the larger labelled share of the two: 0 to 1.

    The background, most of an image, would hide a class twice as large. Without any it is the total
    variation. 0 where neither site has anything labelled.
    """
    first, second = _comparable(own, others)
    labelled = np.maximum(1.0 - _normalised(first)[:, 0], 1.0 - _normalised(second)[:, 0])
    return _total_variation(own, others) / np.where(labelled > 0, labelled, 1.0)


_DISTANCES = (
    _Distance("intensity_wasserstein", (names.INTENSITY_HISTOGRAM,), _wasserstein),
    _Distance("intensity_js", (names.INTENSITY_HISTOGRAM,), _jensen_shannon),
    _Distance("spectrum_distance", (names.LOG_SPECTRUM,), _spectrum),
    _Distance("feature_frechet", (names.FEATURE_MEAN, names.FEATURE_COVARIANCE), frechet_distances),
    _Distance("norm_kl", (names.NORM_MEAN, names.NORM_VARIANCE), _norm_kl),
    _Distance("label_tv", (names.LABELS,), _total_variation),
    _Distance("label_shift", (names.LABELS,), _label_shift),
)

_NEEDS = {distance.metric: distance.needs for distance in _DISTANCES} | {
    "mmd": (names.FOURIER_MEANS,),
    "mmd_p": (names.FOURIER_MEANS,),
    "proxy_a_distance": (names.DOMAIN_COUNTS,),
    "proxy_a_null95": (names.DOMAIN_COUNTS,),
}

METRICS = tuple(_NEEDS)
"""The metrics of ``shift.csv``."""

NO_DISTANCES = frozenset({"mmd_p", "proxy_a_null95"})
"""Those that say what chance would give."""


def _mmd(first: np.ndarray, second: np.ndarray, seed: int) -> tuple[float, float]:
    """Maximum mean discrepancy between two sites' (blocks, features) Fourier means, and its p.

    Gretton et al., "A Kernel Two-Sample Test", JMLR 13 (2012): the biased estimate, here with
    every block weighing the same, and its null by relabelling blocks.
    """
    blocks = np.concatenate([first, second])
    labels = _relabellings(len(first), len(second), MMD_RELABELLINGS, seed, "mmd")
    weights = np.where(labels, 1.0 / len(first), -1.0 / len(second))
    squared = ((weights @ (blocks @ blocks.T)) * weights).sum(axis=1)
    # A relabelling that is the true one, or its mirror, must tie whatever the rounding.
    reached = squared[1:] >= squared[0] * (1.0 - 1e-9) - 1e-15
    p_value = (1 + int(reached.sum())) / (1 + MMD_RELABELLINGS)
    return float(np.linalg.norm(first.mean(axis=0) - second.mean(axis=0))), p_value


def _divisible(statistics: Statistics) -> list[str]:
    """The sites that have both a training and a held-out block, sorted."""
    return sorted(
        site for site, kept in statistics.items() if len(kept.get(names.BLOCK_COUNTS, ())) >= 2
    )


def _discriminants(
    first: Mapping[str, np.ndarray], second: Mapping[str, np.ndarray], seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """Fisher's linear discriminant between two sites' training blocks, and relabelled ones.

    Fitted from pooled sufficient statistics, so it equals the one fitted to the images in one
    place. Returns (1 + relabellings, p) directions and their thresholds, midway between the
    means, so that sites of different size weigh the same.
    """
    training = names.TRAINING_BLOCKS
    own, other = first[names.BLOCK_COUNTS][training], second[names.BLOCK_COUNTS][training]
    counts = np.concatenate([own, other])
    sums = counts[:, None] * np.concatenate(
        [first[names.BLOCK_FEATURES][training], second[names.BLOCK_FEATURES][training]]
    )
    labels = _relabellings(len(own), len(other), DOMAIN_RELABELLINGS, seed, "training").astype(
        np.float64
    )
    above, below = labels @ counts, (1.0 - labels) @ counts
    mean_above = labels @ sums / above[:, None]
    mean_below = (1.0 - labels) @ sums / below[:, None]
    # The sum of outer products does not depend on the labels: no block has to send its own.
    scatter = first[names.TRAINING_SECOND_MOMENT] + second[names.TRAINING_SECOND_MOMENT]
    within = (
        scatter
        - above[:, None, None] * mean_above[:, :, None] * mean_above[:, None, :]
        - below[:, None, None] * mean_below[:, :, None] * mean_below[:, None, :]
    ) / counts.sum()
    size = within.shape[1]
    ridge = 1e-3 * np.trace(within, axis1=1, axis2=2) / size + 1e-12
    within += ridge[:, None, None] * np.eye(size)
    directions = np.linalg.solve(within, (mean_above - mean_below)[:, :, None])[:, :, 0]
    return directions, (directions * (mean_above + mean_below)).sum(axis=1) / 2.0


def _proxy_a(
    first: np.ndarray, second: np.ndarray, own: np.ndarray, other: np.ndarray, seed: int
) -> np.ndarray:
    """Proxy A-distances 2 (1 - 2 err), of the true labels and then of each relabelling.

    Ben-David et al., "Analysis of Representations for Domain Adaptation", NIPS 2006; ``err`` is
    the mean of the two sites' held-out errors, and at most 1/2. ``first`` and ``second`` are
    (held-out blocks, 1 + relabellings) counts above the threshold; ``own`` and ``other`` are the
    blocks' sizes.
    """
    above = np.concatenate([first, second]).T
    sizes = np.concatenate([own, other])
    labels = _relabellings(len(own), len(other), DOMAIN_RELABELLINGS, seed, "held out").astype(
        np.float64
    )
    missed = 1.0 - (labels * above).sum(axis=1) / (labels @ sizes)
    mistaken = ((1.0 - labels) * above).sum(axis=1) / ((1.0 - labels) @ sizes)
    return np.maximum(2.0 * (1.0 - missed - mistaken), 0.0)


@lru_cache(maxsize=256)
def _relabellings(first: int, second: int, count: int, seed: int, purpose: str) -> np.ndarray:
    """(1 + ``count``, ``first + second``) booleans: who belongs to the first site; truth first."""
    truth = np.arange(first + second) < first
    random = np.random.default_rng(derive_seed(seed, purpose, "relabel", first, second))
    shuffled = random.permuted(np.tile(truth, (count, 1)), axis=1)
    labels = np.concatenate([truth[None], shuffled])
    labels.flags.writeable = False
    return labels


def _normalised(counts: np.ndarray) -> np.ndarray:
    """Shares of the last axis; nan where there is nothing."""
    whole = counts.sum(axis=-1, keepdims=True)
    return np.divide(counts, whole, out=np.full(counts.shape, np.nan), where=whole > 0)


def _missing(sent: Statistics) -> list[str]:
    """One sentence for each set of sites that lacks the same statistics; of one site alone nothing
    can be missing."""
    if len(sent) < 2:
        return []
    # These are answers to a question that takes two sites: one alone able to answer got none.
    able = {
        names.FOURIER_MEANS: [site for site in sorted(sent) if names.FEATURE_MEAN in sent[site]],
        names.DOMAIN_COUNTS: _divisible(sent),
    }
    lacking: dict[tuple[str, ...], list[str]] = {}
    for metric, needs in _NEEDS.items():
        sites = tuple(
            site
            for site in sorted(sent)
            if any(name not in sent[site] and able.get(name) != [site] for name in needs)
        )
        if sites:
            lacking.setdefault(sites, []).append(metric)
    return [
        f"{', '.join(metrics)}: left out for {some(sites)}, which did not send "
        f"{', '.join(sorted({n for m in metrics for n in _NEEDS[m]}))} (refused by policy, too "
        "few images, or no labels)."
        for sites, metrics in lacking.items()
    ]
