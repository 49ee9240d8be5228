"""An update whose change of the model is made longer or shorter."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np


class Scaled(Mapping[str, np.ndarray]):
    """``arrays`` moved along the line from ``origin``: w becomes w0 + factor (w - w0).

    A tensor without a factor, or whose factor is 1, stays as it is to the bit.
    """

    def __init__(
        self,
        arrays: Mapping[str, np.ndarray],
        origin: Mapping[str, np.ndarray],
        factors: Mapping[str, float],
    ) -> None:
        self._arrays = arrays
        self._origin = origin
        self._factors = factors

    def __getitem__(self, name: str) -> np.ndarray:
        array = self._arrays[name]
        factor = self._factors.get(name, 1.0)
        if factor == 1:
            return array
        origin = self._origin[name]
        moved = array - origin
        moved *= factor
        moved += origin
        return np.asarray(moved, array.dtype)

    def __iter__(self) -> Iterator[str]:
        return iter(self._arrays)

    def __len__(self) -> int:
        return len(self._arrays)
