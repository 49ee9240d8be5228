"""FedProx: Li et al., Federated Optimization in Heterogeneous Networks, MLSys 2020, Eq. 2.

Each site k minimises   h_k(w; w_t) = F_k(w) + (mu / 2) ||w - w_t||^2   and the server averages as
FedAvg does. With mu = 0 it is FedAvg.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from fedshift.protocol.settings import setting
from fedshift.strategies.base import Strategy


@dataclass(eq=False)
class FedProx(Strategy):
    """FedAvg with a proximal term in every site's objective."""

    paper: ClassVar[str] = "Li T. et al. 2020"

    mu: float = setting(0.01, at_least=0)
    """The weight of the squared distance from the model received."""

    def rules(self) -> dict[str, dict[str, Any]]:
        """The proximal term, unless its weight is 0."""
        return {"proximal": {"mu": self.mu}} if self.mu > 0 else {}
