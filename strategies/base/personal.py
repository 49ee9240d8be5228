"""What the strategies that leave a site something of its own have in common.

Only averaged sub-networks are ever a site's own. A broadcast one is used by sites that do not train
it, and balanced and summed ones are made of several sites' parts: they travel whole.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from fedshift import UserError
from fedshift.protocol.messages import TensorInfo
from fedshift.strategies.base import Strategy


def averaged(tensors: Mapping[str, TensorInfo], name: str) -> frozenset[str]:
    """The tensors that the strategy ``name`` can make a site's own.

    Raises :class:`UserError` when there are none.
    """
    found = frozenset(tensor for tensor, info in tensors.items() if info.sharing == "averaged")
    if not found:
        raise UserError(
            f"strategy={name} makes averaged sub-networks a site's own and this method has none: "
            "its sites train only together; choose another method or strategy=fedavg"
        )
    return found


class Personal(Strategy):
    """Every site ends with a whole model of its own beside the shared one."""

    personal: ClassVar[bool] = True
    stays: ClassVar[str] = "a model of its own"

    def keeps(self, tensors: Mapping[str, TensorInfo]) -> frozenset[str]:
        """What the method keeps. Raises :class:`UserError` when no sub-network is averaged."""
        self.own = averaged(tensors, self.name)
        return super().keeps(tensors)
