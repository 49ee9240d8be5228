"""MOON: Li Q. et al., Model-Contrastive Federated Learning, CVPR 2021, Eq. 3 and Algorithm 1.

FedAvg, and every site minimises   l_sup + mu l_con   with, for z, z_glob and z_prev the
representations of an image under the model in training, the model received and the model the site
ended with last time,

    l_con = -log( e^{sim(z, z_glob) / tau} / (e^{sim(z, z_glob) / tau} + e^{sim(z, z_prev) / tau}) )

where sim is the cosine similarity. In its first training a site has no earlier model and no such
term (an earlier model equal to the received one would have no gradient either).

The paper classifies, with a projection head whose output is z. Here z is the mean over pixels of
the deepest features of the network's encoder, without such a head, which no prediction would use;
of a method with several such networks, each has its term.
They are not negative, so similarities lie between 0 and 1. The two fixed models are in evaluation
mode. Costs two forward passes of the encoder a step.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from fedshift.protocol.needs import ENCODER
from fedshift.protocol.settings import setting
from fedshift.strategies.base import Strategy


@dataclass(eq=False)
class Moon(Strategy):
    """FedAvg of sites held near the shared model's representation of their images."""

    paper: ClassVar[str] = "Li Q. et al. 2021"
    stays: ClassVar[str] = "its last model"

    mu: float = setting(1.0, at_least=0)
    """The weight of the contrastive term."""
    temperature: float = setting(0.5, at_least=1e-3)
    """tau: the smaller, the sharper the contrast."""

    def needs(self) -> frozenset[str]:
        """Features, in whose terms the models are compared."""
        return frozenset({ENCODER})

    def rules(self) -> dict[str, dict[str, Any]]:
        """The contrastive term, unless its weight is 0."""
        settings = {"mu": self.mu, "temperature": self.temperature}
        return {"contrast": settings} if self.mu > 0 else {}
