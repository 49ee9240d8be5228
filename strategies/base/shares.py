"""What the strategies have in common that keep a share of the model for each site and move the
shares by what is known once all sites of a round have answered.

The updates of a round are needed a second time then, so they go to a temporary file as those of the
robust rules do (``TMPDIR`` must hold a model a site) and memory does not grow with the number of
sites: the reply in hand or the new model, one tensor, and a block of 4 MiB with what is computed
from it.

Shares start alike and add up to 1. Only sites that answered move, and only what they held together
is dealt out anew. A sub-network is averaged over the sites that trained it, by their shares, or all
alike where none of them has one. Each site's line of ``rounds.jsonl`` has its ``share``.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from io import BufferedRandom
from typing import Literal

import numpy as np

from fedshift.protocol.flower import ArrayRecord, Message, MetricRecord
from fedshift.protocol.messages import Instruction, TensorInfo
from fedshift.strategies.base.aggregate import Update
from fedshift.strategies.base.risk import ByRisk
from fedshift.strategies.base.robust import Robust, StoredUpdates

_SHARES = "shares"


@dataclass(eq=False)
class Shares(ByRisk, Robust):
    """Sites count by shares that move before a round's updates are averaged."""

    weighting: Literal["uniform"] = "uniform"
    """A site counts by its share alone, whatever number of examples it has."""

    @abstractmethod
    def moved(self, shares: np.ndarray, updates: SharedUpdates) -> np.ndarray:
        """The new shares (n,) of the sites in ``updates``, from those they have, all at least 0 and
        up to a common factor. What the sites told stands in :attr:`outcome`."""

    def begin(
        self, sites: Mapping[str, int], tensors: Mapping[str, TensorInfo], instruction: Instruction
    ) -> None:
        """Bind to a run, with equal shares."""
        super().begin(sites, tensors, instruction)
        self.state = {_SHARES: np.full(len(sites), 1 / len(sites))}

    def share(self, site: str) -> float:
        """How much ``site`` counts now."""
        return float(self.state[_SHARES][self.place(site)])

    def gathering(self) -> SharedUpdates:
        """The round's temporary file."""
        return SharedUpdates(self, self._file)

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Store the replies as they come, move the shares, then average."""
        self.round = server_round
        return super().aggregate_train(server_round, replies)

    def settle(self, updates: SharedUpdates) -> None:
        """Move the shares of the sites in ``updates``."""
        rows = [self.place(site) for site in updates.sites]
        shares = self.state[_SHARES].copy()
        held = shares[rows]
        new = self.moved(held, updates)
        if new.sum() > 0:
            shares[rows] = new * (held.sum() / new.sum())
        self.state[_SHARES] = shares
        for site, share in zip(updates.sites, shares[rows], strict=True):
            self.outcome.sites[site]["share"] = float(share)


class SharedUpdates(StoredUpdates):
    """The stored updates of a round, averaged by their sites' shares."""

    def __init__(self, strategy: Shares, file: BufferedRandom) -> None:
        super().__init__(strategy, file)
        self._strategy = strategy
        self.sites: list[str] = []
        """The sites that trained anything, in order."""
        self.trained: dict[str, list[str]] = {}
        """Of a sub-network, the sites that trained it, in order."""

    def add(self, update: Update) -> None:
        """Store what a site sent."""
        if update.weights:
            self.sites.append(update.site)
        for network in update.weights:
            self.trained.setdefault(network, []).append(update.site)
        super().add(update)

    def result(self) -> Iterator[tuple[str, np.ndarray]]:
        """Each tensor that can be combined, and its combination, by the new shares."""
        self._strategy.settle(self)
        yield from super().result()

    def counts(self, network: str) -> np.ndarray:
        """How much each site counts in a sub-network, (n,), with the sum 1."""
        shares = np.array([self._strategy.share(site) for site in self.trained[network]])
        if not shares.any():
            shares = np.ones(len(shares))
        return shares / shares.sum()
