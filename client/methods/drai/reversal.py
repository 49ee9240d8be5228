"""Gradient reversal: Ganin et al., "Domain-Adversarial Training of Neural Networks", JMLR 2016."""

from __future__ import annotations

from typing import Any

import torch


def reverse_gradient(values: torch.Tensor, weight: float = 1.0) -> torch.Tensor:
    """Return ``values`` as they are; on the way back their gradient is multiplied by ``-weight``.

    What comes after it learns to lower the loss, and what comes before it to raise it.
    """
    found: torch.Tensor = _Reversal.apply(values, weight)
    return found


class _Reversal(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, values: torch.Tensor, weight: float) -> torch.Tensor:
        ctx.weight = weight
        return values.view_as(values)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor, None]:
        return -ctx.weight * gradients[0], None
