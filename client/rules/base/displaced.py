"""Networks whose weights are moved along their gradients for a second look, and put back."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm


@contextmanager
def displaced(
    net: nn.Module, factor: Callable[[torch.Tensor], torch.Tensor | float]
) -> Iterator[None]:
    """Add ``factor`` times their gradients to the weights of ``net``; put them back, to the bit.

    ``factor`` is given the gradients' norm over all weights, a scalar; where that is 0 or not
    finite the weights stay. Batch normalisation does not count the images a second time.
    """
    moved = [(p, p.grad) for p in net.parameters() if p.grad is not None]
    before = [p.detach().clone() for p, _ in moved]
    counting = [m for m in net.modules() if isinstance(m, _BatchNorm) and m.track_running_stats]
    with torch.no_grad():
        norm = torch.nn.utils.get_total_norm([gradient for _, gradient in moved])
        usable = norm.isfinite() & (norm > 0)
        by = factor(norm)
        for p, gradient in moved:
            p.add_(torch.where(usable, gradient * by, 0.0))
    for module in counting:
        module.track_running_stats = False
    try:
        yield
    finally:
        for module in counting:
            module.track_running_stats = True
        with torch.no_grad():
            for (p, _), value in zip(moved, before, strict=True):
                p.copy_(value)
