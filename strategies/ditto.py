"""Ditto: Li et al., Ditto: Fair and Robust Federated Learning Through Personalization, ICML 2021,
Algorithm 1. The shared model w is FedAvg's. Beside it every site k has a model v_k of its own,
which is held near w and never leaves:

    v_k <- v_k - eta (grad F_k(v_k) + lam (v_k - w_t))      for the steps of the round

With lam = 0 the site is on its own; the larger lam, the nearer v_k is to w. A site takes as many
steps for v_k as for w, so local training takes twice as long. v_k starts as the model that the site
is sent first. The term acts through the site's optimiser (Adam) as FedProx's does, on the
parameters of averaged sub-networks; their running statistics are v_k's own.

The algorithm averages with 1 / |S_t|: ``weighting=uniform``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from fedshift.protocol.settings import setting
from fedshift.strategies.base import Family
from fedshift.strategies.base.personal import Personal


@dataclass(eq=False)
class Ditto(Personal):
    """FedAvg, and at every site a model of its own that is held near the shared one."""

    paper: ClassVar[str] = "Li T. et al. 2021"
    family: ClassVar[Family | None] = "personalise"
    plain: ClassVar[bool] = True
    work: ClassVar[float] = 2.0

    lam: float = setting(0.1, at_least=0)
    """The weight of (1/2) ||v - w_t||^2 in the own model's loss."""

    def rules(self) -> dict[str, dict[str, Any]]:
        """Train the own model beside the shared one."""
        return {"ditto": {"lam": self.lam}}
