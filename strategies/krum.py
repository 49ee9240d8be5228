"""Krum: Blanchard et al., Machine Learning with Adversaries: Byzantine Tolerant Gradient Descent,
NeurIPS 2017, section 4.

    s(k) = sum of |w^k - w^j|^2 over the n - f - 2 sites j closest to k
    w_{t+1} = w^k of the smallest s(k), of equal ones the first by name

for n >= 2 f + 3 sites of which f are faulty. Only one site's training counts in a round; where
sites differ by nature, that is a loss, and MultiKrum loses less.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from fedshift.strategies.base import Family
from fedshift.strategies.base.robust import Tolerant


def scores(squared: np.ndarray, byzantine: int) -> np.ndarray:
    """s(k) of each of n updates with squared distances ``squared`` (n, n), over one at least."""
    others = squared.copy()
    np.fill_diagonal(others, np.inf)
    closest = max(len(squared) - byzantine - 2, 1)
    return np.sort(others, axis=1)[:, :closest].sum(axis=1)


@dataclass(eq=False)
class Krum(Tolerant):
    """The update that lies closest to its neighbours."""

    paper: ClassVar[str] = "Blanchard et al. 2017"
    family: ClassVar[Family | None] = "robust"
    combines: ClassVar[str] = "one site's taken, closest to its neighbours"
    compares: ClassVar[bool] = True
    per_faulty: ClassVar[int] = 2
    beside: ClassVar[int] = 3

    def choose(self, weights: np.ndarray, squared: np.ndarray) -> np.ndarray:
        """One site counts."""
        counts = np.zeros(len(weights))
        counts[np.argmin(scores(squared, self.byzantine))] = 1
        return counts
