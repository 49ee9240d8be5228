"""SCAFFOLD's corrected gradients: Karimireddy et al., ICML 2020, Algorithm 1 (see
:mod:`fedshift.strategies.scaffold`).

Steps are counted for every parameter by itself: a method may train with several optimisers.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch.optim import Optimizer

from fedshift.client.contract.method import FitReport
from fedshift.client.model import network_of
from fedshift.client.rules.base import LocalRule, Train, Visit, parameters_of, scale_of


@dataclass
class _Watched:
    """A parameter's correction c - c_k, and the sum and number of the gradients it was given."""

    correction: torch.Tensor
    total: torch.Tensor
    steps: torch.Tensor


class ControlVariate(LocalRule):
    """Exchange the site's own direction for everybody's in each gradient, and note the site's.

    The coordinator sends c; the site remembers c_k and sends its change.
    """

    def __init__(self, visit: Visit) -> None:
        super().__init__(visit)
        self._watched: dict[torch.Tensor, _Watched] = {}
        self._names: dict[str, torch.Tensor] = visit.steered()
        for name, tensor in self._names.items():
            total = torch.zeros_like(tensor, requires_grad=False)
            correction = total.clone()
            for variates, sign in ((visit.extras, 1), (visit.memory, -1)):
                if name in variates:
                    correction += sign * torch.from_numpy(variates[name]).to(tensor.device)
            self._watched[tensor] = _Watched(correction, total, total.new_zeros(()))

    @torch.no_grad()
    def before_step(self, optimizer: Optimizer) -> None:
        """Note the gradients, then correct them; a step that mixed precision leaves out does not
        count."""
        scale = scale_of(optimizer)
        overflow = getattr(optimizer, "found_inf", None)
        for parameter in parameters_of(optimizer):
            watched = self._watched.get(parameter)
            if watched is None or parameter.grad is None:
                continue
            gradient = parameter.grad / scale
            if overflow is None:
                watched.steps += 1
            else:
                watched.steps += 1 - overflow
                gradient = torch.where(overflow > 0, 0.0, gradient)
            watched.total += gradient
            parameter.grad += scale * watched.correction

    def around(self, train: Train) -> FitReport:
        """c_k becomes the mean gradient, of the parameters that were stepped. A training that
        diverged leaves it as it was: its update is not used either."""
        report = train()
        means = {
            name: (watched.total / watched.steps).cpu().numpy()
            for name, watched in ((name, self._watched[t]) for name, t in self._names.items())
            if watched.steps > 0 and network_of(name) in report.trained
        }
        if all(np.isfinite(mean).all() for mean in means.values()):
            for name, mean in means.items():
                self.visit.sent[name] = np.asarray(
                    mean - self.visit.memory.get(name, 0.0), mean.dtype
                )
            self.visit.memory.update(means)
        return report
