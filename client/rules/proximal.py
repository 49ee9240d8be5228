"""FedProx's local term: Li et al., Federated Optimization in Heterogeneous Networks, MLSys 2020,
Eq. 2:   (mu / 2) ||w - w_t||^2   over the exchanged parameters.

(The norm is squared; some docstrings forget it.)
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import nn

from fedshift.client.contract.step import Seen, Step
from fedshift.client.rules.base import LocalRule, Visit


class Proximal(LocalRule):
    """Hold the site near the model it was sent."""

    def __init__(self, visit: Visit, mu: float) -> None:
        super().__init__(visit)
        self.step = near(visit, mu)


@dataclass(frozen=True)
class Near(Step):
    """Hold parameters near where they started: pairs of a live tensor and a copy."""

    pairs: Sequence[tuple[torch.Tensor, torch.Tensor]]
    mu: float

    def penalty(self, nets: Mapping[str, nn.Module], seen: Seen) -> torch.Tensor:
        terms = [torch.sum((tensor - start) ** 2) for tensor, start in self.pairs]
        return 0.5 * self.mu * torch.stack(terms).sum()


def near(visit: Visit, mu: float) -> Near:
    """The term that holds the exchanged parameters near what the model now holds."""
    return Near([(t, t.detach().clone()) for t in visit.exchanged().values()], mu)
