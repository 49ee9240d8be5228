"""Norm clipping: Sun et al., Can You Really Backdoor Federated Learning?, 2019 (arXiv:1911.07963),
section 4.

    w_{t+1} = w_t + sum_k p_k D_k / max(1, ||D_k||_2 / M)        D_k = w_{t+1}^k - w_t

(The paper's sum lacks the weights p_k of its own federated averaging.) No site moves the model by
more than p_k M, whatever it sends; one that lies within the bound is not told from the others.

D_k is a sub-network's change. Running statistics are a vector of their own with the same bound: M
is chosen by the weights' norm, and a bound that leaves tensors out protects from nothing. (Integers
are counters and only averaged.) Each site's line of ``rounds.jsonl`` gets
``update_norm_<sub-network>``, by which to choose M.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np

from fedshift.protocol.settings import setting
from fedshift.strategies.base import Family, Strategy
from fedshift.strategies.base.aggregate import Update
from fedshift.strategies.base.scaled import Scaled


@dataclass(eq=False)
class NormClipping(Strategy):
    """FedAvg of changes of bounded length."""

    paper: ClassVar[str] = "Sun et al. 2019"
    family: ClassVar[Family | None] = "robust"
    combines: ClassVar[str] = "averaged, each site's change clipped"

    bound: float = setting(10.0, at_least=1e-9)
    """M: the longest change, as a Euclidean norm, that a site is granted. The default is the usual
    length of the supervised method's with its own defaults."""

    def prepared(self, update: Update) -> Update:
        """The update with its changes cut to the bound."""
        squares: dict[tuple[str, bool], float] = {}
        for name, array in update.arrays.items():
            info = self.tensors[name]
            if info.domains or not np.issubdtype(array.dtype, np.floating):
                continue
            group = (info.network, name in self.steered)
            square = np.sum(np.square(array - self.current[name], dtype=np.float64))
            squares[group] = squares.get(group, 0.0) + float(square)
        factors = {}
        for name in update.arrays:
            info = self.tensors[name]
            group = (info.network, name in self.steered)
            if group in squares:
                factors[name] = 1 / max(1.0, math.sqrt(squares[group]) / self.bound)
        for (network, weights), square in squares.items():
            if weights:
                update.metrics[f"update_norm_{network}"] = math.sqrt(square)
        return replace(update, arrays=Scaled(update.arrays, self.current, factors))
