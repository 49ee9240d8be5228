"""Streaming aggregation: sites are folded into a running sum, in the order they are given.

Memory is two models (the sum and the incoming update), whatever the number of sites.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from fedshift.protocol.messages import Arrays


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

    def result(self) -> Arrays:
        """The mean of every tensor that some site sent; the running sum is used up."""
        means = {}
        for name in list(self._sums):
            mean = self._sums.pop(name) / self._weights[name]
            if np.issubdtype(self._dtypes[name], np.integer):
                mean = np.rint(mean)
            # A sum of 0-d arrays is a scalar.
            means[name] = np.asarray(mean, self._dtypes[name])
        return means
