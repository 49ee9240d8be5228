"""AFL: Mohri et al., Agnostic Federated Learning, ICML 2019, Stochastic-AFL.

It minimises the loss of the worst mixture of the sites, which with all mixtures allowed is the
worst site's:   min_w max_lambda sum_k lambda_k F_k(w),   lambda_k >= 0, sum_k lambda_k = 1.
In a round, with w_k the weights of site k after local training from w_t:

    w_{t+1} = sum_k lambda_k w_k
    lambda  <- the closest point of the simplex to   lambda + lr (F_1(w_t), ..., F_p(w_t))

Both use the lambda that the round began with; the first one is uniform. In the paper w takes one
step of projected stochastic gradient descent on sum_k lambda_k F_k; here sites train, which for one
local step of gradient descent is the same step. The paper returns the mean over all rounds, which
its bound for convex losses is about; here, as usual with networks, the last model is the result.

Sites that were not drawn, failed or were rejected have no F_k. Their coordinate of the gradient is
0 and the others' are multiplied by p / (how many answered), which for sites drawn at random is the
gradient on average; the mean of the weights is then over those that answered.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np

from fedshift.protocol.messages import Instruction, TensorInfo
from fedshift.protocol.settings import setting
from fedshift.strategies.base.aggregate import DomainMeans, Update
from fedshift.strategies.base.risk import ByRisk

_SHARES = "lambda"


def onto_simplex(point: np.ndarray) -> np.ndarray:
    """The closest point to ``point`` (p,) with no negative number and the sum 1: Duchi et al.,
    Efficient Projections onto the l1-Ball, ICML 2008, Fig. 1."""
    falling = np.sort(point)[::-1]
    # By how much the first j numbers must fall for their sum to be 1.
    falls = (np.cumsum(falling) - 1) / np.arange(1, len(point) + 1)
    last = np.flatnonzero(falling > falls)[-1]
    return np.maximum(point - falls[last], 0.0)


@dataclass(eq=False)
class AFL(ByRisk):
    """Sites count by shares that move to those with the larger loss."""

    paper: ClassVar[str] = "Mohri et al. 2019"
    combines: ClassVar[str] = "averaged by shares that rise with a site's loss"

    weighting: Literal["uniform"] = "uniform"
    """A site counts by its share alone, whatever number of examples it has."""
    lr: float = setting(0.1, at_least=0)
    """The step of the shares: how far one round's difference of 1 between losses moves them."""

    def begin(
        self, sites: Mapping[str, int], tensors: Mapping[str, TensorInfo], instruction: Instruction
    ) -> None:
        """Bind to a run, with equal shares."""
        super().begin(sites, tensors, instruction)
        self.state = {_SHARES: np.full(len(sites), 1 / len(sites))}

    def gathering(self) -> DomainMeans:
        """Means, and the risks."""
        self._risks: dict[str, float] = {}
        return super().gathering()

    def prepared(self, update: Update) -> Update:
        """The update, weighted by its site's share."""
        if not update.weights:
            return update
        share = float(self.state[_SHARES][self.place(update.site)])
        update.metrics[_SHARES] = share
        self._risks[update.site] = update.metrics["risk_received"]
        return self.weighed(update, share)

    def finish(self) -> None:
        """Move the shares."""
        shares = self.state[_SHARES]
        scale = self.lr * len(self.sites) / len(self._risks)
        ascent = np.array([self._risks.get(name, 0.0) for name in self.sites])
        if not any(shares[[name in self._risks for name in self.sites]]):
            self.outcome.skipped = "the sites of this round have no share of the model"
        self.state[_SHARES] = onto_simplex(shares + scale * ascent)
