"""No exchange: every site trains alone, with the same budget. The lower reference."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from fedshift.protocol.messages import TensorInfo
from fedshift.strategies.base import Strategy


class Local(Strategy):
    """Every tensor stays at its site."""

    model: ClassVar[str] = "local"
    exchanges: ClassVar[bool] = False
    travels: ClassVar[str] = "nothing"
    stays: ClassVar[str] = "the model"
    cost: ClassVar[tuple[int, int]] = (0, 0)

    def keeps(self, tensors: Mapping[str, TensorInfo]) -> frozenset[str]:
        """Everything."""
        return frozenset(tensors)
