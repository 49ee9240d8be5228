"""Which pairs of sites have their images compared: all of few sites, a part of many.

The number of pairs grows with the square of the number of sites, and so do the table, the time and
what each site is asked. ``docs/shift.md`` says what may be read from a part.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import combinations
from typing import Literal

import numpy as np

from fedshift import derive_seed
from fedshift.protocol import statistics as names

Choice = Literal["auto", "all", "nearest", "sampled"]
"""``shift.pairs``; ``auto`` is all of up to ``FEW_SITES`` sites, and sampled of more."""
Pair = tuple[str, str]

FEW_SITES = 50
NEAREST = 5
"""The others of each site that ``nearest`` takes."""
RINGS = 5
"""``sampled`` draws so many rings through all sites: each site is in up to twice as many pairs."""


@dataclass(frozen=True)
class Chosen:
    """The pairs ``(a, b)``, a < b, sorted; ``how`` they were chosen, and ``of`` how many."""

    how: Literal["all", "nearest", "sampled"]
    pairs: tuple[Pair, ...]
    of: int

    @property
    def sentence(self) -> str:
        """What was compared, where it is not all."""
        if self.how == "all":
            return ""
        which = {
            "sampled": "drawn by the seed, every pair as likely",
            "nearest": f"each site's {NEAREST} nearest by its grey levels",
        }[self.how]
        return (
            f"Of {self.of:,} pairs of sites {len(self.pairs):,} were compared, {which} "
            f"(shift.pairs={self.how})."
        )


def choose(statistics: Mapping[str, Mapping[str, np.ndarray]], choice: Choice, seed: int) -> Chosen:
    """Choose among the sites that sent ``statistics`` (site -> statistic's name -> array).

    ``nearest`` goes by the Hellinger distance of the intensity histograms, which sites without one
    have to nobody. ``sampled`` joins ``RINGS`` cycles through all sites in random orders, so that
    every site is in some pair and every pair is as likely as any other.
    """
    sites = sorted(statistics)
    every = len(sites) * (len(sites) - 1) // 2
    if choice == "auto":
        choice = "all" if len(sites) <= FEW_SITES else "sampled"
    if choice == "all":
        return Chosen("all", tuple(combinations(sites, 2)), every)
    found = _nearest(statistics, sites) if choice == "nearest" else _sampled(sites, seed)
    return Chosen(choice, tuple(sorted(found)), every)


def _sampled(sites: list[str], seed: int) -> set[Pair]:
    found: set[Pair] = set()
    random = np.random.default_rng(derive_seed(seed, "shift", "pairs"))
    for _ in range(RINGS):
        ring = [sites[index] for index in random.permutation(len(sites))]
        found |= {_ordered(a, b) for a, b in zip(ring, ring[1:] + ring[:1], strict=True) if a != b}
    return found


def _nearest(statistics: Mapping[str, Mapping[str, np.ndarray]], sites: list[str]) -> set[Pair]:
    having = [site for site in sites if names.INTENSITY_HISTOGRAM in statistics[site]]
    if len(having) < 2:
        return set()
    counts = np.stack([statistics[site][names.INTENSITY_HISTOGRAM] for site in having])
    roots = np.sqrt(counts / counts.sum(axis=1, keepdims=True))
    alike = roots @ roots.T  # The squared Hellinger distance is 1 minus this.
    np.fill_diagonal(alike, -np.inf)
    nearest = np.argsort(-alike, axis=1, kind="stable")[:, : min(NEAREST, len(having) - 1)]
    return {
        _ordered(site, having[other])
        for site, others in zip(having, nearest, strict=True)
        for other in others
    }


def _ordered(first: str, second: str) -> Pair:
    return (first, second) if first < second else (second, first)
