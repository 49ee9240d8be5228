"""Swarm learning, simulated: Warnat-Herresthal et al., Swarm Learning for decentralized and
confidential clinical machine learning, Nature 594, 2021.

    w_{t+1} = sum_k (n_k / n) w_{t+1}^k      computed at a site of the round, its head

It is FedAvg to the bit, without a coordinator: the sites of a round send their weights to a head
among them, which merges them and gives the model to the others, and the next round has another
head. In the paper a blockchain admits the sites and elects the head; here the head is drawn by seed
among the sites whose update was accepted, and nothing of the membership is simulated: who holds the
grid of messages together is this program.

What a round moves is counted as the sites would see it: a head sends its own update nowhere, and
gets neither the model it has just merged, for validation, nor that model again in the next round.
Each site's line of ``rounds.jsonl`` says with ``head``, 1 or 0, whose round it was.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import ClassVar

import numpy as np

from fedshift import derive_seed
from fedshift.protocol.flower import ArrayRecord, Message, MetricRecord
from fedshift.protocol.messages import Action, Arrays
from fedshift.strategies.base import Strategy
from fedshift.strategies.base.aggregate import Update

_HEAD = "head"


class Swarm(Strategy):
    """FedAvg at a site that changes every round."""

    paper: ClassVar[str] = "Warnat-Herresthal et al. 2021"
    combines: ClassVar[str] = "averaged at a site of the round"

    @property
    def head(self) -> str | None:
        """The site that merged last and holds the model; None before the first merge."""
        held = self.state.get(_HEAD)
        return None if held is None else list(self.sites)[int(held)]

    def _messages(
        self,
        action: Action,
        server_round: int,
        arrays: ArrayRecord,
        names: list[str],
        extras: Arrays | None = None,
    ) -> list[Message]:
        """The model goes to all of ``names`` but the head, which has it."""
        head, spent = self.head, self.outcome.bytes_down.copy()
        messages = super()._messages(action, server_round, arrays, names, extras)
        if head is not None:
            self.outcome.bytes_down[head] = spent[head]
        return messages

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Fold the replies, then elect the head that does so."""
        self._round = server_round
        self._merged: list[str] = []
        return super().aggregate_train(server_round, replies)

    def prepared(self, update: Update) -> Update:
        """As it is; its site may become the head."""
        if update.weights:
            self._merged.append(update.site)
        return update

    def finish(self) -> None:
        """Elect the first site in a drawn order that took part."""
        names = list(self.sites)
        seed = derive_seed(self.instruction.seed, self._round, "head of the swarm")
        order = np.random.default_rng(seed).permutation(len(names))
        head = next(index for index in order if names[index] in self._merged)
        self.state[_HEAD] = np.asarray(head)
        self.outcome.bytes_up[names[head]] = 0
        for name in self._merged:
            self.outcome.sites[name][_HEAD] = float(name == names[head])
