"""FedProx's local term: Li et al., Federated Optimization in Heterogeneous Networks, MLSys 2020,
Eq. 2:   (mu / 2) ||w - w_t||^2   over the exchanged parameters.

(The norm is squared; some docstrings forget it.)
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import nn

from fedshift.client.rules.base import LocalRule, Visit, sum_of


class Proximal(LocalRule):
    """Hold the site near the model it was sent."""

    def __init__(self, visit: Visit, mu: float) -> None:
        super().__init__(visit)
        pairs = [(tensor, tensor.detach().clone()) for tensor in visit.exchanged().values()]

        def penalty(nets: Mapping[str, nn.Module]) -> torch.Tensor:
            return 0.5 * mu * sum_of(torch.sum((tensor - start) ** 2) for tensor, start in pairs)

        self.penalty = penalty
