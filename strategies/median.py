"""Coordinate-wise median: Yin et al., Byzantine-Robust Distributed Learning: Towards Optimal
Statistical Rates, ICML 2018, Definition 1 and Algorithm 1 (option I).

    w_{t+1,i} = median_k w_{t+1,i}^k        for every number i of the model

It holds as long as fewer than half of the sites are faulty; of an even number the two in the middle
are averaged, and of one or two sites it is the mean.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np

from fedshift.strategies.base import Family
from fedshift.strategies.base.robust import Robust, in_order


@dataclass(eq=False)
class Median(Robust):
    """The median of each number over the sites."""

    paper: ClassVar[str] = "Yin et al. 2018"
    family: ClassVar[Family | None] = "robust"
    plain: ClassVar[bool] = True
    combines: ClassVar[str] = "median of each number"

    weighting: Literal["uniform"] = "uniform"
    """A site counts as one, whatever number of examples it claims."""

    def combine(self, values: np.ndarray, counts: np.ndarray) -> np.ndarray:
        """The middle of each column, or the mean of the two there."""
        ordered = in_order(values)
        last = len(ordered) - 1
        return (ordered[last // 2].astype(np.float64) + ordered[-(-last // 2)]) / 2
