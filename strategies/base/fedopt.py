"""FedOpt: Reddi et al., Adaptive Federated Optimization, ICLR 2021, Algorithm 2.

The mean change of the sites is a pseudo-gradient for an adaptive optimiser at the coordinator:

    D_t = sum_k p_k (w_{t+1}^k - w_t)
    m_t = b1 m_{t-1} + (1 - b1) D_t                          m_{-1} = 0
    v_t = v_{t-1} + D_t^2                                    FedAdagrad
        = v_{t-1} - (1 - b2) D_t^2 sign(v_{t-1} - D_t^2)     FedYogi
        = b2 v_{t-1} + (1 - b2) D_t^2                        FedAdam
    w_{t+1} = w_t + lr m_t / (sqrt(v_t) + tau)

without a correction of the moments' bias. The algorithm asks for v_{-1} >= tau^2; here it is tau^2.
It averages with p_k = 1 / |S|, the paper's experiments by examples: ``weighting`` chooses. The
published defaults are b1 = 0.9 (0 for FedAdagrad), b2 = 0.99 and tau = 1e-3; lr is to be tuned.

Running statistics are averaged: they are measured, not trained.
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from fedshift.protocol.settings import setting
from fedshift.strategies.base import Strategy


@dataclass(eq=False)
class FedOpt(Strategy):
    """What FedAdagrad, FedYogi and FedAdam have in common."""

    paper: ClassVar[str] = "Reddi et al. 2021"

    lr: float = setting(0.03, at_least=0)
    """The coordinator's learning rate: about how far a round moves a weight. The default was chosen
    of 0.003, 0.01, 0.03 and 0.1 by validation on cardiac phantoms, seeds 100 and 101."""
    beta1: float = setting(0.9, at_least=0, at_most=1)
    """How much of the last mean change is kept."""
    tau: float = setting(1e-3, at_least=1e-12)
    """Changes much smaller than this are not adapted to."""

    @abstractmethod
    def second_moment(self, v: np.ndarray, squared: np.ndarray) -> np.ndarray:
        """``v`` after a round whose mean change is ``squared`` in each number."""

    def step(self, name: str, combined: np.ndarray) -> np.ndarray:
        """One step of the optimiser along the sites' mean change."""
        weight = self.current[name]
        change = combined - weight
        m = self.state.get(f"m/{name}", np.zeros_like(weight))
        v = self.state.get(f"v/{name}", np.full_like(weight, self.tau**2))
        m = np.asarray(self.beta1 * m + (1 - self.beta1) * change, weight.dtype)
        v = np.asarray(self.second_moment(v, change**2), weight.dtype)
        self.state |= {f"m/{name}": m, f"v/{name}": v}
        return np.asarray(weight + self.lr * m / (np.sqrt(v) + self.tau), weight.dtype)
