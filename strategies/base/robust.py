"""What the robust strategies have in common: they see all updates of a round before they decide.

Updates go to a temporary file as they come (``TMPDIR`` must hold a model a site) and are read back
a few numbers of every site at a time. So memory does not grow with the number of sites: the reply
in hand or the new model, one tensor, and a block of 4 MiB with what is computed from it; less than
two models, unless one tensor is most of the model.

A sub-network's update is a vector of its own, for not every site trains each. A rule first says
how much each site counts (``choose``), from the distances between the updates if it needs them,
then combines the sites number by number (``combine``). Distances are taken over what training
moves; running statistics and counters, whose scale is another, follow the same sites and the same
rule. Balanced and summed sub-networks are combined as under any strategy, without protection.
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from io import BufferedRandom
from typing import ClassVar, Literal

import numpy as np

from fedshift import UserError
from fedshift.protocol.flower import ArrayRecord, Message, MetricRecord
from fedshift.protocol.messages import Instruction, TensorInfo
from fedshift.protocol.settings import setting
from fedshift.strategies.base import Strategy, guards
from fedshift.strategies.base.aggregate import DomainMeans, Update, as_type

_BLOCK_BYTES = 1 << 22
_FAR = 1e150
"""The squared distance of what is too far apart to be squared."""


@dataclass(eq=False)
class Robust(Strategy):
    """A rule over the updates of all sites of a round."""

    compares: ClassVar[bool] = False
    """Whether ``choose`` needs the distances between the updates."""

    def needed(self) -> int:
        """The fewest updates that the rule can combine."""
        return 1

    def choose(self, weights: np.ndarray, squared: np.ndarray) -> np.ndarray:
        """How much each site counts, 0 for not at all.

        ``weights`` (n,) are those of the updates; ``squared`` (n, n) their squared distances where
        :attr:`compares` says so, else zeros. By default the weights.
        """
        return weights

    def combine(self, values: np.ndarray, counts: np.ndarray) -> np.ndarray:
        """The new numbers (m,) in double precision from those of the sites that count.

        ``values`` are (k, m), ``counts`` (k,) what :meth:`choose` said of these, all above 0. By
        default the mean with these weights.
        """
        return (counts[:, None] * values).sum(axis=0) / counts.sum()

    def gathering(self) -> DomainMeans:
        """The round's temporary file."""
        return StoredUpdates(self, self._file)

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Store the replies as they come, then combine them."""
        with tempfile.TemporaryFile(prefix="fedshift-") as self._file:
            return super().aggregate_train(server_round, replies)

    def check(self, update: Update) -> None:
        """Also refuse a part of a sub-network: vectors of unlike length cannot be compared."""
        guards.check_complete(update.arrays, update.weights, self.travelling)


@dataclass(eq=False)
class Tolerant(Robust):
    """A rule that holds against a stated number of faulty sites among enough others."""

    per_faulty: ClassVar[int]
    beside: ClassVar[int]
    """With f faulty sites the rule needs ``per_faulty`` f + ``beside`` updates."""

    weighting: Literal["uniform"] = "uniform"
    """A site counts as one, whatever number of examples it claims."""
    byzantine: int = setting(1, at_least=0)
    """f: how many sites of a round may send anything at all."""

    def needed(self) -> int:
        """By the paper's condition."""
        return self.per_faulty * self.byzantine + self.beside

    def begin(
        self, sites: Mapping[str, int], tensors: Mapping[str, TensorInfo], instruction: Instruction
    ) -> None:
        """Bind to a run; raises :class:`UserError` also when a round has too few sites."""
        super().begin(sites, tensors, instruction)
        if self.drawn() < self.needed():
            raise UserError(
                f"{type(self).__name__} with strategy.byzantine={self.byzantine} needs "
                f"{self.needed()} sites in a round ({self.per_faulty} x byzantine + "
                f"{self.beside}), and {self.drawn()} train in one; add sites, lower "
                "strategy.byzantine or choose strategy=median"
            )


class StoredUpdates(DomainMeans):
    """The updates of a round, a tensor after another in a file; balanced and summed sub-networks
    are running means."""

    def __init__(self, rule: Robust, file: BufferedRandom) -> None:
        super().__init__(rule.tensors)
        self._rule = rule
        self._file = file
        self._offsets: dict[str, list[int]] = {}
        self._weights: dict[str, list[float]] = {}

    def add(self, update: Update) -> None:
        """Store what a site sent."""
        for network, weight in update.weights.items():
            self._weights.setdefault(network, []).append(weight)
        super().add(update)

    def fold(self, name: str, array: np.ndarray, weight: float, domain: str) -> None:
        """Store one tensor at the end of the file."""
        if self.tensors[name].domains:
            super().fold(name, array, weight, domain)
            return
        self._offsets.setdefault(name, []).append(self._file.tell())
        self._file.write(array.reshape(-1).data)

    def missing(self) -> dict[str, str]:
        """Also the sub-networks with fewer updates than the rule needs."""
        few = {}
        for name, offsets in self._offsets.items():
            if len(offsets) < self._rule.needed():
                few[self.tensors[name].network] = (
                    f"{len(offsets)} updates, {self._rule.needed()} needed by "
                    f"{type(self._rule).__name__}"
                )
        return dict(sorted((super().missing() | few).items()))

    def result(self) -> Iterator[tuple[str, np.ndarray]]:
        """Each tensor that can be combined, and its combination."""
        yield from super().result()
        missing = self.missing()
        counts: dict[str, np.ndarray] = {}
        for name in self._offsets:
            network = self.tensors[name].network
            if network in missing:
                continue
            if network not in counts:
                counts[network] = self.counts(network)
            yield name, self._combined(name, counts[network])

    def counts(self, network: str) -> np.ndarray:
        """How much each site counts in a sub-network, (n,)."""
        weights = np.array(self._weights[network])
        squared = np.zeros((len(weights), len(weights)))
        if self._rule.compares:
            squared = self._squared_distances(network)
        return self._rule.choose(weights, squared)

    def _squared_distances(self, network: str) -> np.ndarray:
        """Between the sites' updates of a sub-network, (n, n).

        |x - y|^2 = x.x + y.y - 2 x.y, of changes: weights are so much longer than what a round
        adds to them that too few digits would be left.
        """
        products = self.products(network)
        lengths = np.diag(products)
        squared = np.maximum(lengths[:, None] + lengths - 2 * products, 0)
        # What overflows is far away.
        return np.nan_to_num(squared, nan=_FAR, posinf=_FAR)

    def products(self, network: str) -> np.ndarray:
        """The scalar products of the sites' changes of a sub-network, (n, n), in their order."""
        count = len(self._weights[network])
        products = np.zeros((count, count))
        for name in self._offsets:
            if name not in self._rule.steered or self.tensors[name].network != network:
                continue
            origin = self._rule.current[name].reshape(-1)
            for part, values in self._blocks(name, np.arange(count)):
                changes = np.subtract(values, origin[part], dtype=np.float64)
                products += changes @ changes.T
        return products

    def _combined(self, name: str, counts: np.ndarray) -> np.ndarray:
        info = self.tensors[name]
        found = np.empty(info.shape, info.dtype)
        flat = found.reshape(-1)
        rows = np.flatnonzero(counts)
        for part, values in self._blocks(name, rows):
            flat[part] = as_type(self._rule.combine(values, counts[rows]), found.dtype)
        return found

    def _blocks(self, name: str, rows: np.ndarray) -> Iterator[tuple[slice, np.ndarray]]:
        """The tensor's numbers of the sites ``rows``, (k, m) a block, and which these are."""
        info = self.tensors[name]
        dtype = np.dtype(info.dtype)
        size = math.prod(info.shape)
        width = max(1, _BLOCK_BYTES // (len(rows) * dtype.itemsize))
        for start in range(0, size, width):
            part = slice(start, min(start + width, size))
            values = np.empty((len(rows), part.stop - start), dtype)
            for row, site in zip(values, rows, strict=True):
                self._file.seek(self._offsets[name][site] + start * dtype.itemsize)
                self._file.readinto(row)
            yield part, values


def in_order(values: np.ndarray) -> np.ndarray:
    """The columns of ``values`` (n, m), each sorted."""
    # Numbers that are sorted together must lie together: twice as fast as sorting along axis 0.
    return np.sort(np.ascontiguousarray(values.T), axis=1).T
