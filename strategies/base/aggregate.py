"""Streaming aggregation: sites are folded into running sums, in the order they are given.

Memory is the sums, in double precision twice a float32 model, the one reply in hand and a few
copies of one tensor, whatever the number of sites: three models and a little. A tensor whose
domains are balanced or summed has one sum a domain; what an optimiser keeps comes on top.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import reduce

import numpy as np

from fedshift.protocol.flower import ArrayRecord
from fedshift.protocol.messages import Arrays, TensorInfo, view_array

_BLOCK = 1 << 17
"""Numbers folded at once: their double-precision products stay in the processor's cache."""


class Unpacked(Mapping[str, np.ndarray]):
    """The arrays of a message, each read where it lies: no second copy of a model."""

    def __init__(self, record: ArrayRecord) -> None:
        self._record = record

    def __getitem__(self, name: str) -> np.ndarray:
        """The array, read-only; raises ``ValueError`` or ``TypeError`` when it is not what it
        says."""
        return view_array(self._record[name])

    def __iter__(self) -> Iterator[str]:
        return iter(self._record)

    def __len__(self) -> int:
        return len(self._record)


@dataclass(frozen=True)
class Update:
    """What was accepted of one site's reply.

    ``site`` is its name; ``arrays`` are what it sent, by tensor; ``weights`` how much it counts in
    each sub-network it trained, above 0; ``domain`` where its balanced and summed sub-networks
    belong; ``metrics`` its line of the round, to which a strategy may add; ``extras`` what it sent
    beside the model, by tensor.
    """

    site: str
    arrays: Mapping[str, np.ndarray]
    weights: Mapping[str, float]
    domain: str
    metrics: dict[str, float]
    extras: Mapping[str, np.ndarray]


class WeightedMean:
    """The weighted mean of each tensor over the sites that sent it.

    Sums are kept in double precision, so the mean of equal weights is that weight; integer
    tensors (a batch counter) are rounded, and every tensor keeps its type.
    """

    def __init__(self) -> None:
        self._sums: Arrays = {}
        self._weights: dict[str, float] = {}
        self._dtypes: dict[str, np.dtype] = {}
        self._products = np.empty(_BLOCK)

    def add(self, arrays: Mapping[str, np.ndarray], weight: float) -> None:
        """Fold one site's ``arrays`` in with a ``weight`` above 0."""
        for name, array in arrays.items():
            values = array.reshape(-1)
            first = name not in self._sums
            if first:
                self._sums[name] = np.empty(array.shape)
                self._weights[name] = 0.0
                self._dtypes[name] = array.dtype
            total = self._sums[name].reshape(-1)
            for start in range(0, values.size, _BLOCK):
                part = slice(start, start + _BLOCK)
                block, summed = values[part], total[part]
                products = summed if first else self._products[: block.size]
                # Cast, then multiply in place: a third less time than a product of both types.
                products[...] = block
                products *= weight
                if not first:
                    summed += products
            self._weights[name] += weight

    def __contains__(self, name: str) -> bool:
        return name in self._sums

    def pop(self, name: str) -> np.ndarray:
        """The mean of the tensor ``name``, whose running sum is used up."""
        mean = self._sums.pop(name)
        mean /= self._weights[name]
        return as_type(mean, self._dtypes[name])

    def result(self) -> Arrays:
        """The mean of every tensor that some site sent; the running sums are used up."""
        return {name: self.pop(name) for name in list(self._sums)}


def as_type(values: np.ndarray, dtype: np.dtype) -> np.ndarray:
    """``values`` in double precision as a tensor's own type; integers are rounded."""
    if np.issubdtype(dtype, np.integer):
        values = np.rint(values)
    return np.asarray(values, dtype)


class DomainMeans:
    """The combination of every tensor, as its sub-network's sharing says (see ``TensorInfo``).

    Averaged and broadcast tensors: the weighted mean over the sites. Balanced ones: the mean over
    their domains of the weighted mean over a domain's sites. Summed ones: the sum of these.
    """

    def __init__(self, tensors: Mapping[str, TensorInfo]) -> None:
        self.tensors = tensors
        self._means: dict[str, WeightedMean] = {}
        self._sent: dict[str, None] = {}

    def add(self, update: Update) -> None:
        """Fold in what a site sent."""
        for name in update.arrays:
            weight = update.weights[self.tensors[name].network]
            self.fold(name, update.arrays[name], weight, update.domain)

    def fold(self, name: str, array: np.ndarray, weight: float, domain: str) -> None:
        """Fold in one tensor of a site of ``domain``."""
        key = domain if self.tensors[name].domains else ""
        self._means.setdefault(key, WeightedMean()).add({name: array}, weight)
        self._sent[name] = None

    def missing(self) -> dict[str, str]:
        """Of the sub-networks that some site sent, those that cannot be combined, and why."""
        found: dict[str, str] = {}
        for name in self._sent:
            info = self.tensors[name]
            for domain in info.domains:
                if domain not in self._means or name not in self._means[domain]:
                    found.setdefault(info.network, f"no update from the domain {domain}")
        return dict(sorted(found.items()))

    def result(self) -> Iterator[tuple[str, np.ndarray]]:
        """Each tensor that can be combined, and its combination; the sums are used up."""
        missing = self.missing()
        for name in self._sent:
            info = self.tensors[name]
            if info.network in missing:
                continue
            means = [self._means[domain].pop(name) for domain in info.domains or ("",)]
            total = reduce(np.add, means)
            if info.sharing == "balanced":
                total = total / len(means)
            yield name, as_type(total, means[0].dtype)
