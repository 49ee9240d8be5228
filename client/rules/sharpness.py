"""Sharpness-aware steps: Foret et al., Sharpness-Aware Minimization for Efficiently Improving
Generalization, ICLR 2021, Algorithm 1.

A step follows the gradient at the highest point of a ball of radius rho around the weights, to
first order

    w + rho g / ||g||        g the gradient at w, its norm over all parameters

so that minima in narrow valleys are left. It takes two forward and backward passes. A common factor
of the gradients, as of mixed precision, does not matter.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from fedshift.client.contract.step import Batch, Gradients, Losses, Step
from fedshift.client.rules.base import LocalRule, Visit
from fedshift.client.rules.base.displaced import displaced
from fedshift.protocol.needs import DESCEND


class Sharpness(LocalRule):
    """Follow the gradients at ``rho`` uphill."""

    needs = frozenset({DESCEND})

    def __init__(self, visit: Visit, rho: float) -> None:
        super().__init__(visit)
        self.step = Uphill(rho)


@dataclass(frozen=True)
class Uphill(Step):
    """Take the gradients of the same batch a second time, ``rho`` up the slope."""

    rho: float

    def descend(self, net: nn.Module, batch: Batch, gradients: Gradients) -> Losses:
        losses = gradients(batch)
        with displaced(net, lambda norm: self.rho / norm):
            gradients(batch)
        return losses
