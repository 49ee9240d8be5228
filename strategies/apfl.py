"""APFL: Deng, Kamani & Mahdavi, Adaptive Personalized Federated Learning, 2020, Algorithm 1 and
Eq. 10. The shared model w is FedAvg's. Site k predicts with a mixture of it and of v_k, which never
leaves:

    m_k = alpha_k v_k + (1 - alpha_k) w
    v_k <- v_k - eta alpha_k grad F_k(m_k)
    alpha_k <- alpha_k - eta_alpha <v_k - w, grad F_k(m_k)>, cut to [0, 1]        Eq. 10

The gradient with respect to v_k is that at the mixture times alpha_k (chain rule). Eq. 10 is taken
at every step, with a rate of its own, ``alpha_lr``: Adam's says nothing about it. At 0 alpha_k
stays at ``alpha``. With alpha_k = 0 the site has the model it was sent, with 1 one that it trains
alone.

Not as in the paper: there w in the mixture moves with site k's own steps for the shared model.
Here a round's steps for v_k come first, with w as it was sent, and those for w second, since a
method's loop trains one set of weights at a time. With one step a round it is the algorithm. Hence
the site's model at the end of a round is the mixture with the w that it was sent in it.

v_k starts as the model the site is sent first. With Adam the optimiser steps v_k by the gradient
above, of which Adam takes the scale away again: v_k then moves as far with a small alpha_k as with
a large one, and the mixture alpha_k times that. Running statistics are those of the mixture. Local
training takes twice as long.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from fedshift.protocol.settings import setting
from fedshift.strategies.base import Family
from fedshift.strategies.base.personal import Personal


@dataclass(eq=False)
class APFL(Personal):
    """FedAvg, and at every site a mixture of the shared model and one of its own."""

    paper: ClassVar[str] = "Deng et al. 2020"
    family: ClassVar[Family | None] = "personalise"
    work: ClassVar[float] = 2.0

    alpha: float = setting(0.5, at_least=0, at_most=1)
    """The own model's share in the mixture, or where it begins."""
    alpha_lr: float = setting(0.0, at_least=0)
    """How fast the share moves along its gradient; 0: it stays."""

    def rules(self) -> dict[str, dict[str, Any]]:
        """Train the mixture beside the shared model."""
        return {"apfl": {"alpha": self.alpha, "alpha_lr": self.alpha_lr}}
