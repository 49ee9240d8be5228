"""Geometric median: Pillutla et al., Robust Aggregation for Federated Learning (RFA), IEEE
Transactions on Signal Processing 2022, Algorithm 2 (the smoothed Weiszfeld algorithm).

    minimise  g(v) = sum_k a_k ||v - w^k||        a_k = n_k / n
    v <- sum_k b_k w^k / sum_k b_k,  b_k = a_k / max(nu, ||v - w^k||),  from the mean

It holds as long as the faulty sites have less than half of the weight: they could claim examples
they do not have, and ``weighting=uniform`` denies them that.

The paper stops after 3 steps, for each costs it a round of secure aggregation. Here v is known by
its weights b and ||v - w^k|| follows from the distances between the updates, so that steps cost
nothing and there are 100.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np

from fedshift.protocol.settings import setting
from fedshift.strategies.base import Family
from fedshift.strategies.base.robust import Robust


@dataclass(eq=False)
class GeometricMedian(Robust):
    """The point with the smallest mean distance from the updates."""

    paper: ClassVar[str] = "Pillutla et al. 2022"
    family: ClassVar[Family | None] = "robust"
    combines: ClassVar[str] = "geometric median"
    compares: ClassVar[bool] = True

    weighting: Literal["examples", "uniform"] = "examples"
    """Whether a site counts by its labelled training slices, or all alike."""
    steps: int = setting(100, at_least=1)
    """Steps of the Weiszfeld algorithm."""
    nu: float = setting(1e-6, at_least=1e-12)
    """Distances below this count as this."""

    def choose(self, weights: np.ndarray, squared: np.ndarray) -> np.ndarray:
        """b_k after the last step: the counts with which the mean is the geometric median."""
        counts = weights / weights.sum()
        for _ in range(self.steps):
            # |sum_j c_j w^j - w^k|^2 for counts c with sum 1.
            to_each = squared @ counts
            distances = np.sqrt(np.maximum(to_each - counts @ to_each / 2, 0))
            counts = weights / np.maximum(distances, self.nu)
            counts /= counts.sum()
        return counts
