"""Bulyan: El Mhamdi et al., The Hidden Vulnerability of Distributed Learning in Byzantium, ICML
2018, section 4, with Krum as the rule it is built on.

    1. Move the update that Krum picks from those left to the selection, until it holds
       theta = n - 2 f.
    2. w_{t+1,i} = mean of the beta = theta - 2 f numbers of the selection that are closest to its
       median, for every number i

for n >= 4 f + 3 sites of which f are faulty. A close update in many dimensions may still be far off
in one: the second step is against that.

The paper's median of a selection is one of its members, so of an even number it is the lower of
the two in the middle here. Towards the end of step 1 there are so few updates left that Krum's
n - f - 2 neighbours would be none: it looks at one at least.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from fedshift.strategies.base import Family
from fedshift.strategies.base.robust import Tolerant, in_order
from fedshift.strategies.krum import scores


@dataclass(eq=False)
class Bulyan(Tolerant):
    """Krum's selection, then a mean around the median of each number."""

    paper: ClassVar[str] = "El Mhamdi et al. 2018"
    family: ClassVar[Family | None] = "robust"
    combines: ClassVar[str] = "Krum's choice averaged around its median"
    compares: ClassVar[bool] = True
    per_faulty: ClassVar[int] = 4
    beside: ClassVar[int] = 3

    def choose(self, weights: np.ndarray, squared: np.ndarray) -> np.ndarray:
        """The theta sites of the selection count alike."""
        left = list(range(len(weights)))
        counts = np.zeros(len(weights))
        for _ in range(len(weights) - 2 * self.byzantine):
            best = np.argmin(scores(squared[np.ix_(left, left)], self.byzantine))
            counts[left.pop(int(best))] = 1
        return counts

    def combine(self, values: np.ndarray, counts: np.ndarray) -> np.ndarray:
        """The mean of each column's beta numbers around its median.

        In order they are neighbours, so one window of beta numbers holds them: that whose farther
        end is closest to the median.
        """
        ordered = in_order(values)
        median = ordered[(len(ordered) - 1) // 2]
        width = len(ordered) - 2 * self.byzantine
        nearest = np.full(median.shape, np.inf)
        mean = np.empty(median.shape)
        for start in range(2 * self.byzantine + 1):
            window = ordered[start : start + width]
            farther = np.maximum(median - window[0], window[-1] - median)
            closer = farther < nearest
            np.copyto(mean, window.mean(axis=0, dtype=np.float64), where=closer)
            np.copyto(nearest, farther, where=closer)
        return mean
