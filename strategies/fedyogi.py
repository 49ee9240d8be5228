"""FedYogi: Reddi et al., Adaptive Federated Optimization, ICLR 2021, Algorithm 2.

    v_t = v_{t-1} - (1 - b2) D_t^2 sign(v_{t-1} - D_t^2)

with the steps of :mod:`fedshift.strategies.base.fedopt`. After a large change v falls by at most
(1 - b2) D^2 a round, where Adam's falls in proportion to itself.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from fedshift.protocol.settings import setting
from fedshift.strategies.base.fedopt import FedOpt


@dataclass(eq=False)
class FedYogi(FedOpt):
    """Yogi at the coordinator."""

    combines: ClassVar[str] = "averaged, then a step of Yogi"

    beta2: float = setting(0.99, at_least=0, at_most=1)
    """One minus how fast the mean square follows."""

    def second_moment(self, v: np.ndarray, squared: np.ndarray) -> np.ndarray:
        """The squares followed by steps that do not depend on ``v``'s size."""
        return v - (1 - self.beta2) * squared * np.sign(v - squared)
