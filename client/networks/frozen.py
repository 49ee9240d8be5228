"""Networks that are looked through and not trained."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TypeVar

from torch import nn

Net = TypeVar("Net", bound=nn.Module)


@contextmanager
def held(*networks: nn.Module) -> Iterator[None]:
    """Compute no gradient of these networks' weights, and keep no activations for any; gradients
    still flow through them."""
    for net in networks:
        net.requires_grad_(False)
    try:
        yield
    finally:
        for net in networks:
            net.requires_grad_(True)


def frozen(net: Net) -> Net:
    """A copy of ``net`` in evaluation mode, without gradients; the network itself stays."""
    return copy.deepcopy(net).eval().requires_grad_(False)
