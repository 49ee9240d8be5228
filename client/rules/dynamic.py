"""FedDyn's bent objective: Acar et al., ICLR 2021, Algorithm 1 (see
:mod:`fedshift.strategies.feddyn`):   L_k(w) - <g_k, w> + (alpha / 2) ||w - w_t||^2.
"""

from __future__ import annotations

import numpy as np
import torch
from torch.optim import Optimizer

from fedshift.client.contract.method import FitReport
from fedshift.client.model import network_of
from fedshift.client.rules.base import LocalRule, Train, Visit, parameters_of, scale_of


class Dynamic(LocalRule):
    """Add the gradient of what is added to the objective, -g_k + alpha (w - w_t), at every step
    of any optimiser; the site remembers g_k."""

    def __init__(self, visit: Visit, alpha: float) -> None:
        super().__init__(visit)
        self.alpha = alpha
        self._names = visit.steered()
        # alpha (w - w_t) - g_k = alpha w - offset
        self._offsets: dict[torch.Tensor, torch.Tensor] = {}
        for name, tensor in self._names.items():
            offset = alpha * tensor.detach()
            if name in visit.memory:
                offset += torch.from_numpy(visit.memory[name]).to(tensor.device)
            self._offsets[tensor] = offset

    @torch.no_grad()
    def before_step(self, optimizer: Optimizer) -> None:
        """Bend the gradients."""
        scale = scale_of(optimizer)
        for parameter in parameters_of(optimizer):
            offset = self._offsets.get(parameter)
            if offset is not None and parameter.grad is not None:
                parameter.grad += scale * (self.alpha * parameter - offset)

    def around(self, train: Train) -> FitReport:
        """g_k becomes g_k - alpha (w_k - w_t). A training that diverged leaves it as it was: its
        update is not used either."""
        report = train()
        gradients = {
            name: (self._offsets[tensor] - self.alpha * tensor.detach()).cpu().numpy()
            for name, tensor in self._names.items()
            if network_of(name) in report.trained
        }
        if all(np.isfinite(gradient).all() for gradient in gradients.values()):
            self.visit.memory.update(gradients)
        return report
