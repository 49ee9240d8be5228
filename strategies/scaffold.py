"""SCAFFOLD: Karimireddy et al., SCAFFOLD: Stochastic Controlled Averaging for Federated Learning,
ICML 2020, Algorithm 1.

Site k holds a control variate c_k, the coordinator their mean c; all start at 0. From the model x
a site takes K steps along gradients in which its own direction is exchanged for everybody's:

    y <- y - eta_l (g_k(y) - c_k + c)
    c_k+ = c_k - c + (x - y_k) / (K eta_l)              option II
    x <- x + lr sum_k p_k (y_k - x)
    c <- c + |S| / N  mean_k (c_k+ - c_k)

At the sites (:mod:`fedshift.client.rules.control_variate`) option II is computed as what it is for
gradient descent, the mean of the gradients g_k seen on the way: x - y_k is eta_l times the sum of
K corrected gradients, so c_k+ = (1 / K) sum g_k. In that form it holds for any local optimiser. The
methods here train with Adam, to which the corrected gradient is given; at the optimum of the sum it
is 0 at every site, so that is where the sites stay, which is what the correction is for.

The paper averages with p_k = 1 / |S| (``weighting=uniform``); by examples the mean over all sites
is weighted alike (:mod:`fedshift.strategies.base.remembering`). ``lr`` is the paper's eta_g.
Running statistics are averaged; balanced and summed sub-networks are left to the method.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from fedshift.protocol.messages import Arrays
from fedshift.protocol.settings import setting
from fedshift.strategies.base.aggregate import Update
from fedshift.strategies.base.remembering import Remembering


@dataclass(eq=False)
class Scaffold(Remembering):
    """FedAvg of sites that correct their drift by control variates."""

    paper: ClassVar[str] = "Karimireddy et al. 2020"
    combines: ClassVar[str] = "averaged; sites correct their gradients"
    travels: ClassVar[str] = "the model, variates"
    stays: ClassVar[str] = "its variate"
    cost: ClassVar[tuple[int, int]] = (2, 2)
    answered: ClassVar[bool] = True

    lr: float = setting(1.0, at_least=0)
    """The coordinator's step: 1 takes the sites' mean."""

    def rules(self) -> dict[str, dict[str, Any]]:
        """Corrected gradients."""
        return {"control_variate": {}}

    def extras(self) -> Arrays:
        """The mean control variate c, as far as it is not 0."""
        means = {name: self.mean(name) for name in sorted(self.steered)}
        return {name: mean for name, mean in means.items() if mean is not None}

    def changes(self, update: Update) -> Iterator[tuple[str, np.ndarray]]:
        """c_k+ - c_k, as the site sent it."""
        yield from update.extras.items()

    def step(self, name: str, combined: np.ndarray) -> np.ndarray:
        """Move by ``lr`` towards the sites' mean."""
        if self.lr == 1:
            return combined
        weight = self.current[name]
        return np.asarray(weight + self.lr * (combined - weight), weight.dtype)
