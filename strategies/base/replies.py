"""What comes of a round: who answered what, and what a reply holds."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from fedshift.protocol.flower import ArrayRecord, MetricRecord, RecordDict
from fedshift.protocol.messages import Arrays
from fedshift.strategies.base.aggregate import Unpacked
from fedshift.strategies.base.clock import Timing


@dataclass
class RoundOutcome:
    """What happened in one round: metrics and bytes by site, who failed or was rejected and why.

    ``shares`` are the largest parts that sites have, by their weights, in a sub-network.
    ``skipped`` says why the model was left unchanged, or is None. On a simulated clock ``timings``
    are those of the sites that were asked, ``stragglers`` the seconds of those that would have
    answered too late and were not waited for, and ``dropouts`` the sites that could not be asked.
    """

    sites: dict[str, dict[str, float]] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)
    rejected: dict[str, str] = field(default_factory=dict)
    skipped: str | None = None
    bytes_down: Counter[str] = field(default_factory=Counter)
    bytes_up: Counter[str] = field(default_factory=Counter)
    statistics: dict[str, Arrays] = field(default_factory=dict)
    shares: dict[str, float] = field(default_factory=dict)
    timings: dict[str, Timing] = field(default_factory=dict)
    stragglers: dict[str, float] = field(default_factory=dict)
    dropouts: list[str] = field(default_factory=list)


def arrays_of(content: RecordDict, key: str) -> Unpacked:
    """The arrays that a reply holds at ``key``; none where it has no such record."""
    record = content.get(key)
    return Unpacked(record if isinstance(record, ArrayRecord) else ArrayRecord())


def shares_of(weights: Mapping[str, Mapping[str, float]]) -> dict[str, float]:
    """The largest part that each site has in a sub-network, from its weights in those that it
    trained; without the sites that trained none."""
    totals: Counter[str] = Counter()
    for own in weights.values():
        totals.update(own)
    return {
        site: max(weight / totals[network] for network, weight in own.items())
        for site, own in weights.items()
        if own
    }


def mean_metrics(sites: Mapping[str, Mapping[str, float]]) -> MetricRecord | None:
    """The mean of each metric over the sites that report it."""
    names = sorted({name for metrics in sites.values() for name in metrics})
    if not names:
        return None
    return MetricRecord(
        {
            name: float(np.mean([metrics[name] for metrics in sites.values() if name in metrics]))
            for name in names
        }
    )
