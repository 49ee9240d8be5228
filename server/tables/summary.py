"""``cross_site.csv``: the summary of all cases over the test split."""

from __future__ import annotations

import itertools
import math
from collections import defaultdict
from collections.abc import Sequence

import numpy as np

from fedshift import derive_seed
from fedshift.protocol.measures import Measure, TaskCard
from fedshift.server.tables.files import Row

BOOTSTRAP_DRAWS = 1000


def summarise(
    case_rows: Sequence[Row], task: TaskCard, seed: int, wholes: Sequence[Row] = ()
) -> list[Row]:
    """Summarise the test split: one row a model, site, part and measure.

    A subject's value is the mean over its cases; ``mean``, ``median`` and ``std`` (with n - 1; nan
    for a single subject) are over subjects. ``n`` counts cases and ``n_failed`` those that failed.
    ``ci_low`` and ``ci_high`` bound the mean's 95 % percentile interval from ``BOOTSTRAP_DRAWS``
    resamples of subjects and, within each, of its cases; nan for a single case. A sparse measure is
    summarised over the cases that have it, if any. A site with several vendors among its test cases
    is named with all of them, "A+B". Measures that the first row lacks (those that are not listed,
    in rows read back from a file) are left out.

    ``wholes`` are measures of whole splits, with the intervals that the task gives them: dicts with
    ``model``, ``trained_on``, ``site``, ``vendor``, ``split``, ``part``, ``metric``, ``n``,
    ``n_failed``, ``value`` (nan where it is not defined, which leaves the row out), ``low`` and
    ``high``.
    """
    tested = [row for row in case_rows if row["split"] == "test"]
    vendors: dict[str, set[str]] = defaultdict(set)
    groups: dict[tuple[str, ...], list[Row]] = defaultdict(list)
    for row in tested:
        vendors[row["site"]].add(row["vendor"])
        groups[row["model"], row["trained_on"], row["site"], row["part"]].append(row)
    measured = [
        measure
        for measure in task.per_case
        if measure.summarised and tested and measure.name in tested[0]
    ]
    dense = [measure for measure in measured if not measure.sparse]

    summary = []
    for key, rows in sorted(groups.items()):
        rows.sort(key=lambda row: (row["subject"], row["case"]))
        # One resample serves every measure that all cases have: the same cases are missed, far off
        # and well predicted.
        chosen = [(rows, dense, "bootstrap")]
        for measure in measured:
            having = [row for row in rows if not math.isnan(row[measure.name])]
            if measure.sparse and having:
                chosen.append((having, [measure], measure.name))
        identity = dict(zip(("model", "trained_on", "site", "part"), key, strict=True))
        identity["vendor"] = "+".join(sorted(vendors[identity["site"]]))
        for cases, measures, purpose in chosen:
            rng = np.random.default_rng(derive_seed(seed, purpose, *key))
            summary += [{**identity, **line} for line in _summary(cases, measures, rng)]
    for row in wholes:
        if row["split"] == "test" and not math.isnan(row["value"]):
            vendor = "+".join(sorted(vendors[row["site"]] or {row["vendor"]}))
            summary.append({**row, "vendor": vendor, **_whole(row)})
    return summary


def _whole(row: Row) -> Row:
    return {
        "mean": row["value"],
        "std": math.nan,
        "median": row["value"],
        "ci_low": row["low"],
        "ci_high": row["high"],
    }


def _summary(
    rows: Sequence[Row], measures: Sequence[Measure], rng: np.random.Generator
) -> list[Row]:
    """The numbers of ``cross_site.csv`` of one model, site and part, over ``rows`` sorted by
    subject."""
    names = [measure.name for measure in measures]
    subjects = [
        np.array([[row[name] for name in names] for row in cases], dtype=np.float64)
        for _, cases in itertools.groupby(rows, key=lambda row: row["subject"])
    ]
    means = np.stack([cases.mean(axis=0) for cases in subjects])
    std = means.std(axis=0, ddof=1) if len(means) > 1 else np.full(len(names), np.nan)
    low, high = _interval(subjects, rng)
    return [
        {
            "metric": name,
            "n": len(rows),
            "n_failed": sum(row["failed"] for row in rows),
            "mean": float(means[:, column].mean()),
            "std": float(std[column]),
            "median": float(np.median(means[:, column])),
            "ci_low": float(low[column]),
            "ci_high": float(high[column]),
        }
        for column, name in enumerate(names)
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
