"""FedProx: Li et al., Federated Optimization in Heterogeneous Networks, MLSys 2020, Eq. 2.

Each site k minimises   h_k(w; w_t) = F_k(w) + (mu / 2) ||w - w_t||^2   and the server averages as
FedAvg does. With mu = 0 it is FedAvg.
"""

from __future__ import annotations

from typing import Any

from fedshift import UserError
from fedshift.strategies.base import Strategy


class FedProx(Strategy):
    """FedAvg with a proximal term in every site's objective."""

    def __init__(self, *, mu: float = 0.01, **settings: Any) -> None:
        """``mu``, at least 0, weighs the squared distance from the model received.

        Raises :class:`UserError` for a negative ``mu``.
        """
        super().__init__(**settings)
        if not mu >= 0:
            raise UserError(f"strategy.mu is {mu}; use a number of at least 0")
        self.mu = mu

    def terms(self) -> dict[str, float]:
        """The proximal term's weight."""
        return {"proximal": self.mu} if self.mu > 0 else {}
