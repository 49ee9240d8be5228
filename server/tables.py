"""The tables of a run folder: written, read back, and summarised.

``cases.csv`` holds a row for each model, case and structure; ``cross_site.csv`` is its summary over
the test split; ``shift.csv`` says how far apart the sites' images are. From these alone follow
the overview of each model and the rank correlation of shift with loss.
"""

from __future__ import annotations

import csv
import itertools
import math
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import rankdata

from fedshift import UserError, derive_seed
from fedshift.protocol.storage import write_atomic
from fedshift.protocol.tables import (
    CASE_COLUMNS,
    CROSS_SITE_COLUMNS,
    HIGHER_IS_BETTER,
    LOWER_IS_BETTER,
    METRICS,
    NEGATIVE_METRICS,
    SHIFT_COLUMNS,
    cell_text,
    csv_text,
)

CaseRow = dict[str, Any]
"""A scored case and structure: the keys of ``CASE_COLUMNS`` and, unless the row was read back from
``cases.csv``, of ``EXTRA_METRICS``."""

BOOTSTRAP_DRAWS = 1000
PERMUTATIONS = 2000

_INTEGERS = frozenset({"failed", "n", "n_failed"})
_FLOATS = frozenset(
    {*METRICS, "reference_volume_ml", "mean", "std", "median", "ci_low", "ci_high", "value"}
)
"""Every other column holds text."""


# Files


def write_cases(path: Path, rows: Iterable[CaseRow]) -> None:
    """Write ``cases.csv``, ordered by its text columns; keys that are not columns stay out."""
    _write(path, CASE_COLUMNS, rows)


def read_cases(path: Path) -> list[CaseRow]:
    """Read what :func:`write_cases` wrote; the same floats, to the last bit."""
    return _read(path, CASE_COLUMNS)


def write_cross_site(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Write ``cross_site.csv``, ordered by its text columns."""
    _write(path, CROSS_SITE_COLUMNS, rows)


def read_cross_site(path: Path) -> list[dict[str, Any]]:
    """Read what :func:`write_cross_site` wrote."""
    return _read(path, CROSS_SITE_COLUMNS)


def write_shift(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Write ``shift.csv``, ordered by its text columns."""
    _write(path, SHIFT_COLUMNS, rows)


def read_shift(path: Path) -> list[dict[str, Any]]:
    """Read what :func:`write_shift` wrote."""
    return _read(path, SHIFT_COLUMNS)


def _write(path: Path, columns: Sequence[str], rows: Iterable[Mapping[str, Any]]) -> None:
    """Raises ``UserError`` when the file cannot be written; an earlier table is then untouched."""
    text_columns = [i for i, name in enumerate(columns) if name not in _INTEGERS | _FLOATS]
    lines = sorted(
        ([_typed(column, row[column]) for column in columns] for row in rows),
        key=lambda line: [line[index] for index in text_columns],
    )
    write_atomic(path, csv_text(columns, lines))


def _typed(column: str, value: Any) -> Any:
    if column in _FLOATS:
        return float(value)
    return int(value) if column in _INTEGERS else str(value)


def _read(path: Path, columns: Sequence[str]) -> list[dict[str, Any]]:
    """Read the named columns of a table.

    Raises ``UserError`` when the file cannot be read, lacks a column, or holds a broken line.
    """
    way_out = "evaluate the run again to write it anew"
    try:
        with path.open(newline="", encoding="utf-8") as file:
            lines = list(csv.reader(file))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"cannot read the table {path} ({error}); {way_out}") from error
    header = lines[0] if lines else []
    if missing := [column for column in columns if column not in header]:
        raise UserError(f"{path} has no column {', '.join(missing)}; {way_out}")
    rows = []
    for number, line in enumerate(lines[1:], start=2):
        try:
            texts = dict(zip(header, line, strict=True))
            rows.append({column: _from_text(column, texts[column]) for column in columns})
        except ValueError as error:
            raise UserError(f"{path}, row {number} is broken ({error}); {way_out}") from error
    return rows


def _from_text(column: str, text: str) -> Any:
    if column in _FLOATS:
        return float(text)
    return int(text) if column in _INTEGERS else cell_text(text)


# The cross-site summary


def summarise(case_rows: Sequence[CaseRow], seed: int) -> list[dict[str, Any]]:
    """Summarise the test split: one row a model, site, structure and metric.

    A subject's value is the mean over its cases; ``mean``, ``median`` and ``std`` (with n - 1; nan
    for a single subject) are over subjects. ``n`` counts cases and ``n_failed`` those with exactly
    one mask empty. ``ci_low`` and ``ci_high`` bound the mean's 95 % percentile interval from
    ``BOOTSTRAP_DRAWS`` resamples of subjects and, within each, of its cases; nan for a single
    case. A site with several vendors among its test cases is named with all of them, "A+B".
    Metrics that the first row lacks (``EXTRA_METRICS`` in rows read back from a file) are left out.

    Where some cases are negative, their reference being empty, rows of ``NEGATIVE_METRICS`` follow:
    ``specificity`` over these, ``dice_positives`` over the others, if any.
    """
    tested = [row for row in case_rows if row["split"] == "test"]
    if not tested:
        return []
    metrics = [metric for metric in METRICS if metric in tested[0]]
    vendors: dict[str, set[str]] = defaultdict(set)
    groups: dict[tuple[str, ...], list[CaseRow]] = defaultdict(list)
    for row in tested:
        vendors[row["site"]].add(row["vendor"])
        groups[row["model"], row["trained_on"], row["site"], row["structure"]].append(row)

    summary = []
    for key, rows in sorted(groups.items()):
        rows.sort(key=lambda row: (row["subject"], row["case"]))
        parts = [(rows, {metric: metric for metric in metrics}, "bootstrap")]
        negative = [
            {**row, "specificity": 1 - row["failed"]}
            for row in rows
            if row["reference_volume_ml"] == 0
        ]
        if negative:
            specificity, dice_positives = NEGATIVE_METRICS
            parts.append((negative, {specificity: specificity}, specificity))
            positive = [row for row in rows if row["reference_volume_ml"] > 0]
            if positive:
                parts.append((positive, {dice_positives: "dice"}, dice_positives))
        identity = dict(zip(("model", "trained_on", "site", "structure"), key, strict=True))
        identity["vendor"] = "+".join(sorted(vendors[identity["site"]]))
        for chosen, named, purpose in parts:
            rng = np.random.default_rng(derive_seed(seed, purpose, *key))
            summary += [{**identity, **line} for line in _summary(chosen, named, rng)]
    return summary


def _summary(
    rows: Sequence[CaseRow], named: Mapping[str, str], rng: np.random.Generator
) -> list[dict[str, Any]]:
    """The numbers of ``cross_site.csv`` of one model, site and structure, over ``rows`` sorted by
    subject; ``named`` maps each metric to the key of its values."""
    keys = list(named.values())
    subjects = [
        np.array([[row[key] for key in keys] for row in cases], dtype=np.float64)
        for _, cases in itertools.groupby(rows, key=lambda row: row["subject"])
    ]
    means = np.stack([cases.mean(axis=0) for cases in subjects])
    std = means.std(axis=0, ddof=1) if len(means) > 1 else np.full(len(keys), np.nan)
    # One resample serves every metric: the same cases are missed, far off and well segmented.
    low, high = _interval(subjects, rng)
    return [
        {
            "metric": metric,
            "n": len(rows),
            "n_failed": sum(row["failed"] for row in rows),
            "mean": float(means[:, column].mean()),
            "std": float(std[column]),
            "median": float(np.median(means[:, column])),
            "ci_low": float(low[column]),
            "ci_high": float(high[column]),
        }
        for column, metric in enumerate(named)
    ]


def _interval(
    subjects: Sequence[np.ndarray], rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Bootstrap the mean over subjects of the mean over cases, each subject (cases, metrics)."""
    values = np.concatenate(subjects)
    if len(values) == 1:
        return np.full(values.shape[1], np.nan), np.full(values.shape[1], np.nan)
    counts = np.array([len(cases) for cases in subjects])
    first = np.cumsum(counts) - counts
    block = 100  # Draws at a time, which bounds memory at a site with thousands of cases.
    estimates = []
    for _ in range(BOOTSTRAP_DRAWS // block):
        subject = rng.integers(len(subjects), size=(block, len(subjects)))[..., None]
        # Each drawn subject fills as many places as it has cases; the rest of its row is unused.
        uniform = rng.random((*subject.shape[:2], counts.max()))
        case = first[subject] + (uniform * counts[subject]).astype(np.int64)
        used = np.arange(counts.max()) < counts[subject]
        cell = (np.arange(block)[:, None, None] * len(values) + case)[used]
        weight = np.broadcast_to(1 / (counts[subject] * len(subjects)), used.shape)[used]
        weights = np.bincount(cell, weight, minlength=block * len(values)).reshape(block, -1)
        # Not a matrix product: its sums may differ in the last bit with the number of threads.
        estimates.append(np.einsum("bn,nm->bm", weights, values))
    low, high = np.percentile(np.concatenate(estimates), [2.5, 97.5], axis=0)
    return low, high


# What the cross-site matrix says of each model


@dataclass(frozen=True)
class Overview:
    """One model's row of the comparison, in the metric's unit; nan where there is no such site.

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
    unseen: Collection[str] = (),
    metric: str = "dice",
) -> list[Overview]:
    """Return each model's overview, sorted by model and ``trained_on``.

    ``unseen`` names the sites on which nothing is trained. A site's value is the mean over its
    structures. Raises ``ValueError`` for a metric of which neither more nor less is better.
    """
    sign = _sign(metric)
    vendor_of = {row["site"]: row["vendor"] for row in cross_site_rows}
    result = []
    for (model, trained_on), values in site_values(cross_site_rows, metric).items():
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
                macro_mean=_mean(seen.values()),
                worst_site=worst_site,
                worst=seen.get(worst_site, math.nan),
                gap=max(seen.values()) - min(seen.values()) if seen else math.nan,
                home=values.get(trained_on, math.nan),
                away=_mean(away),
                unseen=_mean(value for site, value in values.items() if site in unseen),
                vendors={vendor: _mean(found) for vendor, found in sorted(by_vendor.items())},
            )
        )
    return result


def _sign(metric: str) -> int:
    """1 where more is better, -1 where less is."""
    if metric not in HIGHER_IS_BETTER | LOWER_IS_BETTER:
        raise ValueError(f"of {metric} neither more nor less is better")
    return 1 if metric in HIGHER_IS_BETTER else -1


def site_values(
    cross_site_rows: Sequence[Mapping[str, Any]], metric: str
) -> dict[tuple[str, str], dict[str, float]]:
    """The mean over structures for each (model, trained_on) and site, all sorted by name."""
    values: dict[tuple[str, str], dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for row in cross_site_rows:
        if row["metric"] == metric:
            values[row["model"], row["trained_on"]][row["site"]].append(row["mean"])
    return {
        model: {site: _mean(means) for site, means in sorted(sites.items())}
        for model, sites in sorted(values.items())
    }


def _mean(values: Iterable[float]) -> float:
    found = list(values)
    return math.fsum(found) / len(found) if found else math.nan


# Does shift between two sites predict what a model loses between them?


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
    metric: str = "dice",
    seed: int = 0,
    skip: Collection[str] = (),
    sampled: bool = False,
) -> list[RankCorrelation]:
    """Correlate each shift metric with what the local models lose, sorted by the metric's name.

    For an ordered pair (a, b) the drop is how much worse the local model of site a does at b than
    at home, in ``metric``. A shift metric has a row for (a, b), or one for both directions. Pairs
    share sites and are not independent, so the p-value is that of a Mantel test (Mantel 1967,
    Cancer Research 27:209): the sites are renamed jointly in the shift matrix, in every possible
    way up to six sites and in ``PERMUTATIONS`` ways beyond, and the p-value is the share of
    namings, the true one among them, with an absolute rho at least as large. Renaming needs the
    shift of every pair, so sites whose shift to others is missing or not finite are left out, the
    one with the most gaps first. Where only ``sampled`` pairs have a shift, the sites are renamed
    in the drops instead, which comes to the same, and sites whose drop at others is missing are
    left out. ``skip`` names the rows' metrics that are no distances, such as p-values. Raises
    ``ValueError`` for a ``metric`` of which neither more nor less is better.
    """
    sign = _sign(metric)
    drops = _drops(cross_site_rows, metric, sign)
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
            rng = np.random.default_rng(derive_seed(seed, "rank correlation", name, metric))
            rho, p_value = _mantel(matrix, at, np.array([values[pair] for pair in pairs]), rng)
        result.append(RankCorrelation(name, rho, p_value, len(pairs)))
    return result


def _both_ways(shift: Mapping[tuple[str, str], float]) -> dict[tuple[str, str], float]:
    """The finite values by ordered pair; one row may stand for both ways."""
    known = {pair: value for pair, value in shift.items() if math.isfinite(value)}
    return {(b, a): value for (a, b), value in known.items()} | known


def _drops(
    cross_site_rows: Sequence[Mapping[str, Any]], metric: str, sign: int
) -> dict[tuple[str, str], float]:
    """What each local model loses from home to another site, the mean over the structures that
    both sites score; sorted by home, then site."""
    values: dict[str, dict[str, dict[str, float]]] = defaultdict(lambda: defaultdict(dict))
    for row in cross_site_rows:
        if row["model"] == "local" and row["metric"] == metric:
            values[row["trained_on"]][row["site"]][row["structure"]] = row["mean"]
    drops = {}
    for home, by_site in sorted(values.items()):
        for site, found in sorted(by_site.items()):
            own = by_site.get(home, {})
            common = [name for name in found if name in own]
            if site != home and common:
                lost = _mean(own[name] for name in common) - _mean(found[name] for name in common)
                drops[home, site] = sign * lost
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
