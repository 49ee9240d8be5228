"""q-FedAvg: Li et al., Fair Resource Allocation in Federated Learning, ICLR 2020, Algorithm 2.

It minimises   sum_k p_k F_k(w)^(q+1) / (q + 1),   in which a site with a large loss counts for more
the larger q is: 0 is the mean loss, infinity the worst site's. With w_k the weights of site k after
local training from w_t:

    d_k = L (w_t - w_k)
    D_k = F_k(w_t)^q d_k        h_k = q F_k(w_t)^(q-1) ||d_k||^2 + L F_k(w_t)^q
    w_{t+1} = w_t - sum_k D_k / sum_k h_k

With q = 0 it is FedAvg, to the bit. As in the algorithm the sums have no p_k, which it brings in by
drawing sites with probability p_k; ``weighting=examples`` multiplies D_k and h_k by n_k instead.

L stands for the Lipschitz constant of the gradient; the paper takes the inverse of the learning
rate that is best for q = 0, and with local gradient descent d_k is then the sum of the steps'
gradients. The methods here train with Adam, whose steps are as long as its learning rate whatever
the gradient, so that the inverse of that rate says nothing about F. L is therefore a setting in its
own right, and means what it means in the proof: h_k bounds the curvature of F_k^(q+1) / (q + 1)
along d_k. Where L |w_t - w_k|^2 is small beside F_k / q the step is nearly the mean change, each
site counting F_k^q; where it is large, steps are short. Each site's line of ``rounds.jsonl`` has
``update_norm_<sub-network>``, |w_t - w_k|, by which to choose.

Every sub-network is a vector of its own, for not every site trains each. Running statistics and
counters are averaged, a site counting F_k^q. The site sends F_k and w_k, of which the coordinator
computes D_k and h_k: one model at a time, and the sums.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np

from fedshift.protocol.settings import setting
from fedshift.strategies.base.aggregate import DomainMeans, Update
from fedshift.strategies.base.risk import ByRisk
from fedshift.strategies.base.scaled import Scaled

_LEAST = 1e-10
"""The least risk, so that a site without any has a weight."""


@dataclass(eq=False)
class QFedAvg(ByRisk):
    """Sites count by a power of their loss."""

    paper: ClassVar[str] = "Li T. et al. 2020 (fair)"
    combines: ClassVar[str] = "averaged by a power of the sites' losses"

    weighting: Literal["examples", "uniform"] = "uniform"
    q: float = setting(1.0, at_least=0, at_most=20)
    """How much fairness: the power of a site's loss by which it counts."""
    lipschitz: float = setting(0.01, at_least=1e-12)
    """L. The default makes the two terms of h_k alike at q = 1 for a loss of 1 and an update of
    length 10, the usual length of the supervised method's with its own defaults."""

    def gathering(self) -> DomainMeans:
        """Means, and the two sums by sub-network."""
        self._weights: dict[str, float] = {}
        self._bounds: dict[str, float] = {}
        return super().gathering()

    def prepared(self, update: Update) -> Update:
        """The update with its weight times F_k^q; its h_k is added up."""
        if not update.weights:
            return update
        risk = max(update.metrics["risk_received"], _LEAST)
        squares: dict[str, float] = {}
        for name in update.arrays:
            if name in self.steered:
                change = np.subtract(update.arrays[name], self.current[name], dtype=np.float64)
                network = self.tensors[name].network
                squares[network] = squares.get(network, 0.0) + float(np.sum(np.square(change)))
        for network, square in squares.items():
            update.metrics[f"update_norm_{network}"] = math.sqrt(square)
            weight = update.weights[network]
            # Both sums divided by L.
            bound = risk**self.q + self.q * risk ** (self.q - 1) * self.lipschitz * square
            self._weights[network] = self._weights.get(network, 0.0) + weight * risk**self.q
            self._bounds[network] = self._bounds.get(network, 0.0) + weight * bound
        return self.weighed(update, risk**self.q)

    def step(self, name: str, combined: np.ndarray) -> np.ndarray:
        """Move towards the mean, in which sites count F_k^q, as far as the bound allows."""
        network = self.tensors[name].network
        factor = self._weights[network] / self._bounds[network]
        return Scaled({name: combined}, self.current, {name: factor})[name]
