"""FedAvgM: Hsu et al., Measuring the Effects of Non-Identical Data Distribution for Federated
Visual Classification, 2019 (arXiv:1909.06335), section 4.3.

    D = w_t - sum_k (n_k / n) w_{t+1}^k        v <- b v + D        w_{t+1} = w_t - lr v

The paper has lr = 1; then b = 0 is FedAvg. A steady D ends in steps of lr / (1 - b) times its
length, ten times that of FedAvg at b = 0.9: with few rounds, lower lr.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from fedshift.protocol.settings import setting
from fedshift.strategies.base import Strategy


@dataclass(eq=False)
class FedAvgM(Strategy):
    """FedAvg with momentum at the coordinator."""

    paper: ClassVar[str] = "Hsu et al. 2019"
    combines: ClassVar[str] = "averaged, with momentum"

    lr: float = setting(1.0, at_least=0)
    """The coordinator's learning rate."""
    momentum: float = setting(0.9, at_least=0, at_most=1)
    """b: how much of the last round's step is kept."""

    def step(self, name: str, combined: np.ndarray) -> np.ndarray:
        """Move along the sum of the changes so far."""
        weight = self.current[name]
        key = f"momentum/{name}"
        velocity = self.momentum * self.state.get(key, np.zeros_like(weight)) + (weight - combined)
        self.state[key] = np.asarray(velocity, weight.dtype)
        return np.asarray(weight - self.lr * velocity, weight.dtype)
