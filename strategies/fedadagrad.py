"""FedAdagrad: Reddi et al., Adaptive Federated Optimization, ICLR 2021, Algorithm 2.

    v_t = v_{t-1} + D_t^2

with the steps of :mod:`fedshift.strategies.base.fedopt`; they shrink as v grows.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from fedshift.protocol.settings import setting
from fedshift.strategies.base.fedopt import FedOpt


@dataclass(eq=False)
class FedAdagrad(FedOpt):
    """Adagrad at the coordinator."""

    combines: ClassVar[str] = "averaged, then a step of Adagrad"

    beta1: float = setting(0.0, at_least=0, at_most=1)
    """How much of the last mean change is kept; the paper's Adagrad has no momentum."""

    def second_moment(self, v: np.ndarray, squared: np.ndarray) -> np.ndarray:
        """The sum of the squares."""
        return v + squared
