"""APFL's mixture: Deng et al., Adaptive Personalized Federated Learning, 2020, Algorithm 1 and
Eq. 10. What it does, and how it differs from the paper, is in :mod:`fedshift.strategies.apfl`.

The method trains the mixture, whose weights it holds between two steps. For a step of an optimiser
they are exchanged for v, and their gradient for the one with respect to v, so that the optimiser
(with its moments) steps v.
"""

from __future__ import annotations

import numpy as np
import torch
from torch.optim import Optimizer

from fedshift.client.contract.method import FitReport
from fedshift.client.rules.base import Train, Visit, parameters_of, scale_of
from fedshift.client.rules.base.own_model import OwnModel

_ALPHA = "alpha"
_LOCAL = "v::"


class APFL(OwnModel):
    """Train v through the mixture alpha v + (1 - alpha) w, which is the site's own model."""

    def __init__(self, visit: Visit, alpha: float, alpha_lr: float) -> None:
        """``alpha`` is where a site begins; it moves with rate ``alpha_lr``, at 0 not at all."""
        super().__init__(visit)
        alpha = float(visit.memory.get(_ALPHA, alpha))
        self.alpha = torch.tensor(alpha, dtype=torch.float64, device=visit.device)
        self.rate = alpha_lr
        self.mixed: dict[torch.Tensor, tuple[torch.Tensor, torch.Tensor]] = {}
        """The parameters of averaged sub-networks, each with its v and w."""
        self._names: dict[str, torch.Tensor] = {}
        for name, tensor in visit.exchanged().items():
            if self.sharing[name] == "averaged":
                w = tensor.detach().clone()
                noted = visit.memory.get(f"{_LOCAL}{name}")
                v = w.clone() if noted is None else torch.from_numpy(noted).to(w, copy=True)
                self.mixed[tensor], self._names[name] = (v, w), tensor
        self._at_work = False

    def train_own(self, train: Train) -> FitReport:
        self._mix(list(self.mixed))
        self._at_work = True
        report = train()
        self._at_work = False
        self._mix(list(self.mixed))  # Those of an optimiser that stepped before alpha last moved.
        for name, tensor in self._names.items():
            self.visit.memory[f"{_LOCAL}{name}"] = self.mixed[tensor][0].cpu().numpy()
        self.visit.memory[_ALPHA] = np.array(float(self.alpha))
        return report

    def around(self, train: Train) -> FitReport:
        """Report the share of v, as ``alpha``."""
        report = super().around(train)
        report.metrics["alpha"] = float(self.alpha)
        return report

    @torch.no_grad()
    def before_step(self, optimizer: Optimizer) -> None:
        """Give the optimiser v and the gradient with respect to it; move alpha along its own."""
        if not self._at_work:
            return
        slope = torch.zeros_like(self.alpha)
        for parameter in self._stepped(optimizer):
            v, w = self.mixed[parameter]
            assert parameter.grad is not None
            slope += torch.sum((v - w) * parameter.grad, dtype=slope.dtype)
            parameter.grad.mul_(self.alpha)
            parameter.copy_(v)
        moved = self.alpha - self.rate * slope / scale_of(optimizer)
        # A step that mixed precision leaves out has no finite gradient.
        self.alpha = torch.where(moved.isfinite(), moved.clamp(0, 1), self.alpha)

    @torch.no_grad()
    def after_step(self, optimizer: Optimizer) -> None:
        """Take v from the optimiser, and give the method the mixture."""
        if self._at_work:
            stepped = self._stepped(optimizer)
            for parameter in stepped:
                self.mixed[parameter][0].copy_(parameter)
            self._mix(stepped)

    def _stepped(self, optimizer: Optimizer) -> list[torch.Tensor]:
        """The mixed parameters that a step of ``optimizer`` moves."""
        return [
            parameter
            for parameter in parameters_of(optimizer)
            if parameter in self.mixed and parameter.grad is not None
        ]

    @torch.no_grad()
    def _mix(self, parameters: list[torch.Tensor]) -> None:
        for parameter in parameters:
            v, w = self.mixed[parameter]
            parameter.copy_(self.alpha * v + (1 - self.alpha) * w)
