"""FedDyn: Acar et al., Federated Learning Based on Dynamic Regularization, ICLR 2021, Algorithm 1.

Every site's objective is bent so that its own minimiser is the minimiser of all:

    w_k = argmin  L_k(w) - <g_k, w> + (alpha / 2) ||w - w_t||^2
    g_k <- g_k - alpha (w_k - w_t)                              at the site, from 0
    h   <- h - alpha (1 / N) sum_{k in S} (w_k - w_t)           at the coordinator, from 0
    w_{t+1} = mean_{k in S} w_k - h / alpha

g_k is the gradient of L_k at w_k where a site finds its minimiser, and h is the mean of the g_k of
all N sites, drawn or not. Where w stays, every w_k is w and h is 0: the gradients cancel, so w is
the minimiser of the mean loss, however many steps the sites take.

As in the paper's experiments a site takes a number of steps instead of finding its minimiser, and
the same formula then defines g_k. The paper averages alike (``weighting=uniform``); by examples
both means are weighted with n_k, and the fixed point is that of the weighted loss
(:mod:`fedshift.strategies.base.remembering`). The coordinator adds up the sites' movements, held
back by nothing but the sites' penalty: with a small ``alpha`` the model swings about the minimiser
for long, with a large one it moves slowly, and gradient descent diverges where alpha times its rate
exceeds 2. Running statistics are averaged.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from fedshift.protocol.settings import setting
from fedshift.strategies.base.aggregate import Update
from fedshift.strategies.base.remembering import Remembering


@dataclass(eq=False)
class FedDyn(Remembering):
    """Sites bend their objectives towards the common minimiser."""

    paper: ClassVar[str] = "Acar et al. 2021"
    combines: ClassVar[str] = "averaged, less the mean of the sites' gradients"
    stays: ClassVar[str] = "its gradient"

    alpha: float = setting(0.1, at_least=1e-8)
    """The weight of the squared distance from the model received: gradient per movement."""

    def rules(self) -> dict[str, dict[str, Any]]:
        """The bent objective."""
        return {"dynamic": {"alpha": self.alpha}}

    def changes(self, update: Update) -> Iterator[tuple[str, np.ndarray]]:
        """-alpha (w_k - w_t): what the site adds to its g_k."""
        for name, array in update.arrays.items():
            if name in self.steered:
                yield name, self.alpha * (self.current[name] - array)

    def step(self, name: str, combined: np.ndarray) -> np.ndarray:
        """The mean, less h / alpha."""
        h = self.mean(name)
        return combined if h is None else np.asarray(combined - h / self.alpha, combined.dtype)
