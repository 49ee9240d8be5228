"""Steps of Adam on one objective: what the training loops of all methods have in common."""

from __future__ import annotations

import math
from collections.abc import Callable
from types import MappingProxyType

import torch
from torch import nn

from fedshift import Tellable
from fedshift.client.contract.step import Batch, Losses, Seen, Step

Penalty = Callable[[Seen], torch.Tensor | None]
"""A step's penalty on a method's networks."""
Objective = Callable[[Batch], tuple[Losses, Seen]]
"""The losses of a batch, and what the stepped networks were shown for them."""


class Descent:
    """Adam on some networks, which moves no other, with half precision's loss scale, the strategy's
    penalty, and the means of the losses; it is the
    :class:`~fedshift.client.contract.step.Gradients` of its objective.

    Adam starts afresh with each: its moments belong to the weights a site had, not to those it is
    sent.
    """

    def __init__(
        self,
        *networks: nn.Module,
        lr: float,
        betas: tuple[float, float] = (0.9, 0.999),
        amp: bool = False,
        penalty: Penalty | None = None,
        objective: Objective | None = None,
        longest: float = math.inf,
    ) -> None:
        """``objective`` is what a strategy's step may look at more than once (:meth:`follow`).
        Gradients longer than ``longest``, over all parameters, are cut to that length."""
        self.parameters = [parameter for net in networks for parameter in net.parameters()]
        self.device = self.parameters[0].device
        self._adam = torch.optim.Adam(self.parameters, lr=lr, betas=betas, fused=True)
        self._scaler = torch.amp.GradScaler(self.device.type, enabled=amp)
        self._amp = amp
        self._penalty, self._objective = penalty, objective
        self._longest = longest
        self._steps = 0
        # Sums stay tensors until the end: reading a number at every step would stall a GPU.
        self._sums: dict[str, torch.Tensor] = {}

    def autocast(self) -> torch.autocast:
        """The mixed precision in which losses are computed."""
        return torch.autocast(self.device.type, dtype=torch.float16, enabled=self._amp)

    def step(self, losses: Losses) -> None:
        """Step down the sum of ``losses`` and the penalty."""
        self.take(self.gradients(losses))

    def follow(self, step: Step, net: nn.Module, batch: Batch) -> None:
        """Step on ``batch`` by the gradients that the strategy's ``step`` makes of the objective's,
        which depends on the weights of ``net``."""
        self.take(step.descend(net, batch, self))

    def __call__(self, batch: Batch) -> Losses:
        assert self._objective is not None
        return self.gradients(*self._objective(batch))

    def gradients(self, losses: Losses, seen: Seen = MappingProxyType({})) -> Losses:
        """Leave the gradients of the sum of ``losses`` and the penalty in the parameters, in place
        of what was there; return its terms."""
        terms = dict(losses)
        if self._penalty is not None:
            with self.autocast():
                penalty = self._penalty(seen)
            if penalty is not None:
                terms["penalty"] = penalty
        self._adam.zero_grad()
        self._add(torch.stack([*terms.values()]).sum())
        return {name: term.detach() for name, term in terms.items()}

    def add(self, objective: Callable[[], torch.Tensor]) -> None:
        """Add the gradients of another scalar, which is computed in mixed precision."""
        with self.autocast():
            loss = objective()
        self._add(loss)

    def _add(self, loss: torch.Tensor) -> None:
        # Only to these: other networks that the loss depends on must not move.
        self._scaler.scale(loss).backward(inputs=self.parameters)

    def add_constant(self, gradient: torch.Tensor) -> None:
        """Add a gradient from elsewhere: those of all parameters, flattened, one after the other.
        It takes no loss scale, so it is for full precision."""
        parts = gradient.split([parameter.numel() for parameter in self.parameters])
        for parameter, part in zip(self.parameters, parts, strict=True):
            assert parameter.grad is not None
            parameter.grad += part.view_as(parameter)

    @property
    def scale(self) -> torch.Tensor:
        """By what the gradients are multiplied until the step is taken."""
        return self._scaler.scale(torch.ones((), device=self.device))

    def norm(self) -> torch.Tensor:
        """The length of the gradients, times their :attr:`scale`."""
        found = [p.grad for p in self.parameters if p.grad is not None]
        return torch.nn.utils.get_total_norm(found)

    def take(self, losses: Losses) -> None:
        """Step along the gradients that are there, and note the ``losses`` they belong to."""
        self._steps += 1
        for name, loss in losses.items():
            self._sums[name] = self._sums.get(name, 0) + loss
        if math.isfinite(self._longest):
            self._scaler.unscale_(self._adam)
            torch.nn.utils.clip_grad_norm_(self.parameters, self._longest)
        self._scaler.step(self._adam)
        self._scaler.update()

    def means(self) -> dict[str, float]:
        """The means of the losses over the steps, and of the penalty where there is one."""
        return {name: float(total) / self._steps for name, total in self._sums.items()}

    def finished(self, diverged: str) -> dict[str, float]:
        """:meth:`means`; raises :class:`fedshift.UserError` with the sentence ``diverged`` when one
        of them or a weight is not finite."""
        means = self.means()
        finite = torch.stack([p.isfinite().all() for p in self.parameters]).all()
        if not finite or not all(map(math.isfinite, means.values())):
            raise Tellable(diverged)
        return means
