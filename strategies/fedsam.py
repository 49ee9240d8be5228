"""FedSAM: sharpness-aware minimisation at the sites, FedAvg at the coordinator.

Qu et al., Generalized Federated Learning via Sharpness Aware Minimization, ICML 2022, Algorithm 1;
Caldarola et al., Improving Generalization in Federated Learning by Seeking Flat Minima, ECCV 2022,
Algorithm 1 with SAM. Every local step follows the gradient where the loss is highest nearby:

    g~ = grad F_k(w + rho g / ||g||)       g = grad F_k(w), on the same batch
    w  <- w - eta g~

Minima that are narrow at one site, and then missed by the mean, are left for wide ones. The papers
step with SGD; here g~ goes to the method's Adam. The same augmented batch is seen twice, batch
normalisation counts it once, and mixed precision is as for any step. Costs twice the time of
FedAvg's training and nothing else.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from fedshift.protocol.needs import DESCEND
from fedshift.protocol.settings import setting
from fedshift.strategies.base import Strategy


@dataclass(eq=False)
class FedSAM(Strategy):
    """FedAvg of sites that look for flat minima."""

    paper: ClassVar[str] = "Qu et al. 2022"
    work: ClassVar[float] = 2.0

    rho: float = setting(0.05, at_least=0)
    """How far uphill the gradient is taken, as a Euclidean norm over all weights."""

    def needs(self) -> frozenset[str]:
        """Gradients taken uphill."""
        return frozenset({DESCEND})

    def rules(self) -> dict[str, dict[str, Any]]:
        """Sharpness-aware steps, unless their radius is 0."""
        return {"sharpness": {"rho": self.rho}} if self.rho > 0 else {}
