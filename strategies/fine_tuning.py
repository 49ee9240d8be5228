"""Fine-tuning: FedAvg, and at the end every site goes on alone from the shared model, w_T:

    w_{t+1} = sum_k (n_k / n) w_{t+1}^k          for t < T
    v_k = w_T after the steps of the last ``tuning_rounds`` rounds at site k

Wang et al., Federated Evaluation of On-device Personalization, 2019; Yu, Bagdasaryan & Shmatikov,
Salvaging Federated Learning by Local Adaptation, 2020, section 3 ("fine-tuning").

The rounds are those of the run, so that sites take as many steps as with FedAvg, and the learning
rate stays as it was: both papers leave it, and for how long, to the user. In the last rounds all
sites train, also with ``fraction`` below 1, and no weight of an averaged sub-network travels but
w_T to a site that does not have it yet. What sites publish to the bank, and broadcast, balanced and
summed sub-networks, travel on. The ``global`` model is w_T.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from fedshift import UserError
from fedshift.protocol.flower import ArrayRecord, ConfigRecord, Grid, Message
from fedshift.protocol.messages import Action, Arrays, Instruction, TensorInfo
from fedshift.protocol.settings import setting
from fedshift.strategies.base import Family
from fedshift.strategies.base.aggregate import Update
from fedshift.strategies.base.personal import Personal

_HAS = "tuned/"


@dataclass(eq=False)
class FineTuning(Personal):
    """FedAvg, then training at every site alone."""

    paper: ClassVar[str] = "Wang K. et al. 2019"
    family: ClassVar[Family | None] = "personalise"
    plain: ClassVar[bool] = True
    combines: ClassVar[str] = "averaged (trained alone in the last rounds)"
    travels: ClassVar[str] = "the model, but in the last rounds"

    tuning_rounds: int = setting(1, at_least=1)
    """How many of the run's rounds every site trains alone, the last ones."""

    def bound_to_rounds(self) -> str:
        """Which rounds are the last."""
        return "trains every site alone in the run's last rounds"

    def begin(
        self, sites: Mapping[str, int], tensors: Mapping[str, TensorInfo], instruction: Instruction
    ) -> None:
        """Bind to a run; raises :class:`UserError` also when no round is left for FedAvg."""
        if instruction.rounds <= self.tuning_rounds:
            raise UserError(
                f"strategy.tuning_rounds={self.tuning_rounds} leaves no round of rounds="
                f"{instruction.rounds} for the shared model: lower it, or train longer"
            )
        super().begin(sites, tensors, instruction)

    def is_tuning(self, server_round: int) -> bool:
        """Whether every site trains alone in this round."""
        return server_round > self.instruction.rounds - self.tuning_rounds

    def select(self, server_round: int) -> list[str]:
        """All sites, once they train alone."""
        return list(self.sites) if self.is_tuning(server_round) else super().select(server_round)

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """As FedAvg does; in the last rounds the averaged tensors are the sites' own."""
        if self.is_tuning(server_round):
            self.kept |= self.own
            self.instruction = self.instruction.but(kept=tuple(sorted(self.kept)))
        return super().configure_train(server_round, arrays, config, grid)

    def _messages(
        self,
        action: Action,
        server_round: int,
        arrays: ArrayRecord,
        names: list[str],
        extras: Arrays | None = None,
    ) -> list[Message]:
        """In the last rounds the whole model only to sites that have none of their own yet."""
        if not self.is_tuning(server_round):
            return super()._messages(action, server_round, arrays, names, extras)
        others = ArrayRecord({n: array for n, array in arrays.items() if n not in self.kept})
        new = [name for name in names if _HAS + name not in self.state]
        rest = [name for name in names if _HAS + name in self.state]
        return [
            *super()._messages(action, server_round, arrays, new, extras),
            *super()._messages(action, server_round, others, rest, extras),
        ]

    def prepared(self, update: Update) -> Update:
        """Note, in the last rounds, that its site has a model of its own now."""
        if update.weights and self.own <= self.kept:
            self.state[_HAS + update.site] = np.array(True)
        return update
