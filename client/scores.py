"""What a site tells of its scores where its policy lets no case be told of: means, rounded."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import numpy as np

from fedshift.protocol.measures import Measure, Row

DIGITS = 3


def site_means(
    rows: Sequence[tuple[str, Row]], measures: Sequence[Measure], min_subjects: int
) -> list[list[Any]]:
    """The mean of every summarised one of ``measures`` by split and part, over the subjects, whose
    values are the means over their cases: ``[split, vendor, part, measure, n, failed, mean]`` with
    the number of cases and of those that failed, the mean to :data:`DIGITS` digits.

    ``rows`` are cases and what is measured of whole splits, by split. Nothing is told of fewer than
    ``min_subjects`` subjects.
    """
    cases: dict[tuple[str, str], list[Row]] = defaultdict(list)
    vendors: dict[str, set[str]] = defaultdict(set)
    subjects: dict[str, set[str]] = defaultdict(set)
    for split, row in rows:
        if row.case:
            cases[split, row.part].append(row)
            vendors[split].add(row.vendor)
            subjects[split].add(row.subject)
    told: list[list[Any]] = []
    for (split, part), found in cases.items():
        vendor = "+".join(sorted(vendors[split]))
        for measure in measures:
            if measure.whole or not measure.summarised:
                continue
            having = [row for row in found if not math.isnan(row.values[measure.name])]
            by_subject: dict[str, list[float]] = defaultdict(list)
            for row in having:
                by_subject[row.subject].append(row.values[measure.name])
            if len(by_subject) >= max(min_subjects, 1):
                mean = float(np.mean([np.mean(values) for values in by_subject.values()]))
                failed = sum(row.failed for row in having)
                line = [split, vendor, part, measure.name, len(having), failed, rounded(mean)]
                told.append(line)
    for split, row in rows:
        if not row.case and len(subjects[split]) >= min_subjects:
            ((name, value),) = row.values.items()
            told.append([split, row.vendor, row.part, name, row.n, 0, rounded(value)])
    return told


def rounded(value: float) -> float:
    """``value`` to :data:`DIGITS` digits."""
    return float(f"{value:.{DIGITS}g}")
