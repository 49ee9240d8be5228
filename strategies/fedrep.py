"""FedRep: Collins et al., Exploiting Shared Representations for Personalized Federated Learning,
ICML 2021, Algorithm 1. With the body phi and the head h_k of site k:

    h_k <- tau_h steps of gradient descent on F_k(h, phi_t), from the head of its last round
    phi^k <- steps on F_k(h_k, phi), from phi_t, the new head held fixed
    phi_{t+1} = sum_k (n_k / n) phi^k

The head is what FedPer leaves at a site (``personal_layers``); what differs is that the two take
turns. The algorithm prints one step of the body and the mean over all sites alike; its experiments
give the body epochs. Here the body has what ``head_steps`` leaves of the round's local steps, so
that a round costs what FedAvg's does, and ``weighting=uniform`` is the plain mean.

The algorithm is for gradient descent. With Adam each of the two has its own moments, which a step
of the other leaves alone. Running statistics go on being measured in both turns.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from fedshift import UserError
from fedshift.protocol.messages import Instruction, TensorInfo
from fedshift.protocol.settings import setting
from fedshift.strategies.fedper import FedPer


@dataclass(eq=False)
class FedRep(FedPer):
    """FedPer, but a site trains first its head and then the body."""

    paper: ClassVar[str] = "Collins et al. 2021"
    travels: ClassVar[str] = "the body"
    stays: ClassVar[str] = "the head"

    head_steps: int | None = setting(None, at_least=1)
    """How many of the local steps train the head; null: half of them."""

    def rules(self) -> dict[str, dict[str, Any]]:
        """Head and body take turns."""
        return {"alternating": {"head_steps": self.head_steps}}

    def begin(
        self, sites: Mapping[str, int], tensors: Mapping[str, TensorInfo], instruction: Instruction
    ) -> None:
        """Bind to a run; raises :class:`UserError` also when one of the two has no step."""
        least = 1 + (self.head_steps or 1)
        if instruction.steps < least:
            raise UserError(
                f"strategy={self.name} divides local_steps={instruction.steps} between head and "
                f"body: set local_steps to at least {least}"
                + (f", or lower strategy.head_steps={self.head_steps}" if self.head_steps else "")
            )
        super().begin(sites, tensors, instruction)
