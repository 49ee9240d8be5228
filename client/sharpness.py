"""Sharpness-aware steps: Foret et al., Sharpness-Aware Minimization for Efficiently Improving
Generalization, ICLR 2021, Algorithm 1.

A step follows the gradient at the highest point of a ball of radius rho around the weights, to
first order

    w + rho g / ||g||        g the gradient at w, its norm over all parameters

so that minima in narrow valleys are left. It takes two forward and backward passes.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm


@contextmanager
def uphill(net: nn.Module, rho: float) -> Iterator[None]:
    """Move the weights of ``net`` by ``rho`` along their gradients, and put them back, to the bit.

    A common factor of the gradients, as of mixed precision, does not matter; where the norm is 0 or
    not finite the weights stay. Batch normalisation does not count the images a second time.
    """
    moved = [(p, p.grad) for p in net.parameters() if p.grad is not None]
    before = [p.detach().clone() for p, _ in moved]
    counting = [m for m in net.modules() if isinstance(m, _BatchNorm) and m.track_running_stats]
    with torch.no_grad():
        norm = torch.nn.utils.get_total_norm([gradient for _, gradient in moved])
        usable = norm.isfinite() & (norm > 0)
        for p, gradient in moved:
            p.add_(torch.where(usable, gradient * (rho / norm), 0.0))
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
