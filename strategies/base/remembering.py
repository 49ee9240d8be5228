"""What SCAFFOLD and FedDyn have in common: every site remembers a vector the size of the model, and
the coordinator carries the mean over all sites, also of those that are not drawn in a round.

Both papers let sites count alike and divide by the number of all sites; each then has one N-th of
the sum, and the mean can be kept up from the changes of the sites that were drawn. Here a site has
the weight n_k that it has in the model (its examples, or 1 with ``weighting=uniform``), so what is
kept is the sum of n_k times the site's vector and every n_k. Sites not heard of yet have a vector
of zeros and, until they are heard of, the mean weight. With equal weights that is the papers' mean
in every round; with others it is exact once every site was drawn.

The sum follows what was received. A site whose update comes too late, or is rejected, has moved on
alone: the mean is off by its last change from then on, and so, by as much, is the fixed point.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from fedshift.strategies.base import Strategy
from fedshift.strategies.base.aggregate import DomainMeans, Update


@dataclass(eq=False)
class Remembering(Strategy):
    """A strategy whose sites remember a vector each, and the weighted mean of these vectors.

    The coordinator keeps the sum, one model, and the sites' weights in each sub-network.
    """

    gaps: ClassVar[tuple[str, ...]] = ("weights/",)

    @abstractmethod
    def changes(self, update: Update) -> Iterator[tuple[str, np.ndarray]]:
        """By how much the site of ``update`` has changed its vector, by tensor."""

    def gathering(self) -> DomainMeans:
        """Means, and who was heard of in this round."""
        self._heard: list[int] = []
        return super().gathering()

    def prepared(self, update: Update) -> Update:
        """The update as it is, whose change of the memory is added to the sum; also in a round
        without a quorum, since the site's memory has moved."""
        self._weigh(update)
        for name, change in self.changes(update):
            added = update.weights[self.tensors[name].network] * change
            held = self.state.get(f"sum/{name}", 0.0)
            self.state[f"sum/{name}"] = np.asarray(held + added, change.dtype)
        return update

    def _weigh(self, update: Update) -> None:
        """Note how much the site counts in each sub-network, 0 where others train and it does
        not; what is not known of a site is NaN."""
        place = self.place(update.site)
        self._heard.append(place)
        for network, weight in update.weights.items():
            unknown = np.full(len(self.sites), np.nan)
            # A copy: should the round come to nothing, the state is what it was.
            known = self.state.get(f"weights/{network}", unknown).copy()
            known[place] = weight
            self.state[f"weights/{network}"] = known
        for name, known in list(self.state.items()):
            if name.startswith("weights/"):
                heard = known.copy()
                heard[self._heard] = np.nan_to_num(known[self._heard])
                self.state[name] = heard

    def mean(self, name: str) -> np.ndarray | None:
        """The mean over all sites of what they remember of a tensor; None before any does."""
        summed = self.state.get(f"sum/{name}")
        if summed is None:
            return None
        weights = self.state[f"weights/{self.tensors[name].network}"]
        total = np.nanmean(weights) * len(weights)
        return np.asarray(summed / total, summed.dtype)
