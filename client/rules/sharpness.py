"""Sharpness-aware local steps (see :mod:`fedshift.client.sharpness`)."""

from __future__ import annotations

from fedshift.client.contract.method import FitReport
from fedshift.client.rules.base import LocalRule, Train, Visit


class Sharpness(LocalRule):
    """Follow the gradients at ``rho`` uphill."""

    def __init__(self, visit: Visit, rho: float) -> None:
        super().__init__(visit)
        self.rho = rho

    def around(self, train: Train) -> FitReport:
        """The segmentation network's training, with such steps."""
        return train(sharpness=self.rho)
