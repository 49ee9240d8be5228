"""Coordinate-wise trimmed mean: Yin et al., Byzantine-Robust Distributed Learning: Towards Optimal
Statistical Rates, ICML 2018, Definition 2 and Algorithm 1 (option II).

    w_{t+1,i} = mean of w_{t+1,i}^k without the f smallest and the f largest, for every number i

The paper trims a share b of the n sites at each end, at least that of the faulty ones; here
f = b n is set as ``byzantine``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from fedshift.strategies.base import Family
from fedshift.strategies.base.robust import Tolerant, in_order


@dataclass(eq=False)
class TrimmedMean(Tolerant):
    """The mean of each number over the sites, without the extremes."""

    paper: ClassVar[str] = "Yin et al. 2018"
    family: ClassVar[Family | None] = "robust"
    plain: ClassVar[bool] = True
    combines: ClassVar[str] = "trimmed mean of each number"
    per_faulty: ClassVar[int] = 2
    beside: ClassVar[int] = 1

    def combine(self, values: np.ndarray, counts: np.ndarray) -> np.ndarray:
        """The mean of what is left of each column."""
        kept = in_order(values)[self.byzantine : len(values) - self.byzantine]
        return kept.mean(axis=0, dtype=np.float64)
