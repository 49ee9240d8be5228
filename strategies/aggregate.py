"""Streaming aggregation: sites are folded into running sums, in the order they are given.

Memory is two models (the sum and the incoming update), whatever the number of sites; a tensor whose
domains are balanced or summed has one sum a domain.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from fedshift.protocol.messages import Arrays, TensorInfo


class WeightedMean:
    """The weighted mean of each tensor over the sites that sent it.

    Sums are kept in double precision, so the mean of equal weights is that weight; integer
    tensors (a batch counter) are rounded, and every tensor keeps its type.
    """

    def __init__(self) -> None:
        self._sums: Arrays = {}
        self._weights: dict[str, float] = {}
        self._dtypes: dict[str, np.dtype] = {}

    def add(self, arrays: Mapping[str, np.ndarray], weight: float) -> None:
        """Fold one site's ``arrays`` in with a ``weight`` above 0."""
        for name, array in arrays.items():
            if name in self._sums:
                self._sums[name] += weight * array.astype(np.float64)
                self._weights[name] += weight
            else:
                self._sums[name] = weight * array.astype(np.float64)
                self._weights[name] = weight
                self._dtypes[name] = array.dtype

    def __contains__(self, name: str) -> bool:
        return name in self._sums

    def pop(self, name: str) -> np.ndarray:
        """The mean of the tensor ``name``, whose running sum is used up."""
        mean = self._sums.pop(name) / self._weights[name]
        if np.issubdtype(self._dtypes[name], np.integer):
            mean = np.rint(mean)
        # A sum of 0-d arrays is a scalar.
        return np.asarray(mean, self._dtypes[name])

    def result(self) -> Arrays:
        """The mean of every tensor that some site sent; the running sums are used up."""
        return {name: self.pop(name) for name in list(self._sums)}


class DomainMeans:
    """The update of every tensor, as its sub-network's sharing says (see ``TensorInfo``).

    Averaged and broadcast tensors: the weighted mean over the sites. Balanced ones: the mean over
    their domains of the weighted mean over a domain's sites. Summed ones: the sum of these.
    """

    def __init__(self, tensors: Mapping[str, TensorInfo]) -> None:
        self._tensors = tensors
        self._means: dict[str, WeightedMean] = {}
        self._sent: dict[str, None] = {}

    def add(
        self, arrays: Mapping[str, np.ndarray], weights: Mapping[str, float], domain: str
    ) -> None:
        """Fold in what a site of ``domain`` sent; ``weights`` are by sub-network, above 0."""
        for name, array in arrays.items():
            info = self._tensors[name]
            mean = self._means.setdefault(domain if info.domains else "", WeightedMean())
            mean.add({name: array}, weights[info.network])
            self._sent[name] = None

    def missing(self) -> dict[str, str]:
        """Of the sub-networks that some site sent: the first of their domains that none did."""
        found = {}
        for name in self._sent:
            info = self._tensors[name]
            for domain in info.domains:
                if domain not in self._means or name not in self._means[domain]:
                    found.setdefault(info.network, domain)
        return dict(sorted(found.items()))

    def result(self) -> Arrays:
        """The update of every tensor that all of its domains sent; the sums are used up."""
        missing = self.missing()
        updates = {}
        for name in self._sent:
            info = self._tensors[name]
            if info.network in missing:
                continue
            means = [self._means[domain].pop(name) for domain in info.domains or ("",)]
            total = np.asarray(sum(means), means[0].dtype)
            updates[name] = total / len(means) if info.sharing == "balanced" else total
        return updates
