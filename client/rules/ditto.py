"""Ditto's personal objective: Li et al., Ditto: Fair and Robust Federated Learning Through
Personalization, ICML 2021, Eq. 2 and Algorithm 1:

    h_k(v; w_t) = F_k(v) + (lam / 2) ||v - w_t||^2        over the parameters of averaged networks
"""

from __future__ import annotations

from fedshift.client.contract.method import FitReport
from fedshift.client.rules.base import Train, Visit
from fedshift.client.rules.base.own_model import OwnModel
from fedshift.client.rules.proximal import near


class Ditto(OwnModel):
    """Train the site's own model near the shared one it was sent."""

    def __init__(self, visit: Visit, lam: float) -> None:
        super().__init__(visit)
        # Built here, while the model holds what was sent: the own one is held near that.
        self._near = near(visit, lam)

    def train_own(self, train: Train) -> FitReport:
        return train(step=self._near)
