"""FedAdam: Reddi et al., Adaptive Federated Optimization, ICLR 2021, Algorithm 2.

    v_t = b2 v_{t-1} + (1 - b2) D_t^2

with the steps of :mod:`fedshift.strategies.base.fedopt`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from fedshift.protocol.settings import setting
from fedshift.strategies.base.fedopt import FedOpt


@dataclass(eq=False)
class FedAdam(FedOpt):
    """Adam at the coordinator."""

    combines: ClassVar[str] = "averaged, then a step of Adam"

    beta2: float = setting(0.99, at_least=0, at_most=1)
    """How much of the last mean square is kept."""

    def second_moment(self, v: np.ndarray, squared: np.ndarray) -> np.ndarray:
        """The exponential mean of the squares."""
        return self.beta2 * v + (1 - self.beta2) * squared
