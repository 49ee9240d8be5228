"""FedNova: Wang et al., Tackling the Objective Inconsistency Problem in Heterogeneous Federated
Optimization, NeurIPS 2020, Eq. 6 and section 4.

A site that takes more steps moves further, and plain averaging then favours its objective. With
tau_k steps at site k and p_k = n_k / n:

    d_k = (w_{t+1}^k - w_t) / tau_k        tau_eff = sum_k p_k tau_k
    w_{t+1} = w_t + tau_eff sum_k p_k d_k

(The paper divides by ||a_k||_1, the sum of the weights with which the local optimiser adds its
gradients. For plain SGD that is tau_k; the methods here train with Adam, whose steps have the
length of its learning rate, so the number of steps is what makes a site move further.)

tau_k is what a site reports as ``steps``, else the round's local steps; steps that mixed precision
left out (``nonfinite_steps``) do not count. When all took the same number it is FedAvg, to the bit.
Running statistics are averaged as FedAvg does.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np

from fedshift.protocol.answers import Unfit
from fedshift.strategies.base import Strategy
from fedshift.strategies.base.aggregate import DomainMeans, Update
from fedshift.strategies.base.scaled import Scaled

_MOST_STEPS = 100
"""Times the steps that were asked for."""


@dataclass(eq=False)
class FedNova(Strategy):
    """FedAvg of the sites' changes per step they took."""

    paper: ClassVar[str] = "Wang et al. 2020"
    combines: ClassVar[str] = "averaged per local step"

    def gathering(self) -> DomainMeans:
        """Means, and the steps behind them."""
        self._weights: dict[str, float] = {}
        self._steps: dict[str, float] = {}
        return super().gathering()

    def prepared(self, update: Update) -> Update:
        """The update as if its site had taken the round's number of steps."""
        steps = self.taken(update.metrics)
        for network, weight in update.weights.items():
            self._weights[network] = self._weights.get(network, 0.0) + weight
            self._steps[network] = self._steps.get(network, 0.0) + weight * steps
        factors = dict.fromkeys(self.steered, self.instruction.steps / steps)
        return replace(update, arrays=Scaled(update.arrays, self.current, factors))

    def check(self, update: Update) -> None:
        """Refuse steps that nobody takes: a site may take others than it was asked for, as many as
        its images are worth, but not any number."""
        super().check(update)
        most = _MOST_STEPS * self.instruction.steps
        steps = update.metrics.get("steps", self.instruction.steps)
        if not 0 <= update.metrics.get("nonfinite_steps", 0) <= steps <= most:
            raise Unfit(f"says that it took steps of no possible number, of at most {most}")

    def taken(self, metrics: dict[str, float]) -> float:
        """tau_k of a site with these ``metrics``; one at least."""
        steps = metrics.get("steps", self.instruction.steps) - metrics.get("nonfinite_steps", 0)
        return max(steps, 1)

    def step(self, name: str, combined: np.ndarray) -> np.ndarray:
        """Move by tau_eff mean steps."""
        network = self.tensors[name].network
        effective = self._steps[network] / self._weights[network]
        factor = effective / self.instruction.steps
        return Scaled({name: combined}, self.current, {name: factor})[name]
