"""An update whose change of the model is made longer or shorter."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np


class Scaled(Mapping[str, np.ndarray]):
    """``arrays`` moved along the line from ``origin``: w becomes w0 + factor (w - w0), or w1 +
    factor (w - w0) with w1 of ``onto``.

    A tensor without a factor stays as it is to the bit, and without ``onto`` one whose factor is 1.
    """

    def __init__(
        self,
        arrays: Mapping[str, np.ndarray],
        origin: Mapping[str, np.ndarray],
        factors: Mapping[str, float],
        onto: Mapping[str, np.ndarray] | None = None,
    ) -> None:
        self._arrays = arrays
        self._origin = origin
        self._factors = factors
        self._onto = onto

    def __getitem__(self, name: str) -> np.ndarray:
        array = self._arrays[name]
        factor = self._factors.get(name)
        if factor is None or (factor == 1 and self._onto is None):
            return array
        origin = self._origin[name]
        moved = array - origin
        moved *= factor
        moved += origin if self._onto is None else self._onto[name]
        return np.asarray(moved, array.dtype)

    def __iter__(self) -> Iterator[str]:
        return iter(self._arrays)

    def __len__(self) -> int:
        return len(self._arrays)
