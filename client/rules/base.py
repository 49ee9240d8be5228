"""What a strategy changes in a site's local training, whatever the method.

A method trains as its paper says. A rule acts beside it: it adds a penalty to the loss, looks at
or changes gradients and weights at every step of an optimiser, changes batches, trains a second
model, or measures. It is built for one training (a :class:`Visit`) and dropped after it; what it
notes for the next one goes into ``visit.memory``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Protocol

import torch
from torch import nn
from torch.optim import Optimizer
from torch.optim.optimizer import (
    register_optimizer_step_post_hook,
    register_optimizer_step_pre_hook,
)

from fedshift.client.contract.method import Budget, FitReport, StatisticsBank
from fedshift.client.model import Model
from fedshift.protocol.messages import Arrays, Instruction
from fedshift.sites.types import SiteData


@dataclass
class Visit:
    """One local training, as its rules see it.

    ``model`` holds the weights that were sent, filled up with what the site keeps. ``extras`` is
    what the coordinator sent beside them, by the name of a tensor. ``memory`` is what the rule
    noted here in the last round the site trained in, and may be changed; it stays at the site.

    A rule may leave in ``sent`` what goes to the coordinator beside the update (named as tensors
    are, of their shape), and in ``personal`` the tensors of a model that is the site's own, where
    it finds those of the last round. To the method's report it may add metrics, and statistics for
    the bank.
    """

    instruction: Instruction
    site: SiteData
    model: Model
    device: torch.device
    extras: Arrays = field(default_factory=dict)
    bank: StatisticsBank = field(default_factory=dict)
    memory: Arrays = field(default_factory=dict)
    sent: Arrays = field(default_factory=dict)
    personal: Arrays = field(default_factory=dict)

    def exchanged(self) -> dict[str, torch.Tensor]:
        """The live parameters that travel, by name."""
        kept = self.instruction.kept
        return {
            name: tensor
            for name, tensor in self.model.tensors().items()
            if name not in kept and tensor.requires_grad
        }

    def steered(self) -> dict[str, torch.Tensor]:
        """Those of them that the strategy moves: not of balanced and summed sub-networks, whose
        combination the method decides."""
        infos = self.model.infos()
        return {
            name: tensor for name, tensor in self.exchanged().items() if not infos[name].domains
        }


class Train(Protocol):
    """Runs the method's training once on the weights now loaded, in a budget with ``changes``."""

    def __call__(self, **changes: Any) -> FitReport: ...


Penalty = Callable[[Mapping[str, nn.Module]], torch.Tensor]


class LocalRule:
    """A rule that does nothing; its subclasses do, and take their settings as keywords."""

    penalty: Penalty | None = None
    """What is added to the loss at every step, given the networks."""

    def __init__(self, visit: Visit) -> None:
        self.visit = visit

    def before_step(self, optimizer: Optimizer) -> None:
        """Called when the gradients are there and an optimiser of the method is about to step."""

    def after_step(self, optimizer: Optimizer) -> None:
        """Called when an optimiser of the method has stepped."""

    def around(self, train: Train) -> FitReport:
        """The whole local training; by default the method's, once. The weights that the model
        holds in the end are the site's update."""
        return train()


def run_rules(
    rules: Sequence[LocalRule], fit: Callable[[Budget], FitReport], budget: Budget
) -> FitReport:
    """``fit`` with all ``rules`` at work, the first one outermost."""
    penalties = [rule.penalty for rule in rules if rule.penalty is not None]
    if penalties:
        budget = replace(budget, penalty=lambda nets: sum_of(p(nets) for p in penalties))

    def train(**changes: Any) -> FitReport:
        with _stepping(rules):
            return fit(replace(budget, **changes))

    inner: Train = train
    for rule in reversed(rules):
        inner = partial(_within, rule, inner)
    return inner()


def _within(rule: LocalRule, train: Train, **changes: Any) -> FitReport:
    return rule.around(partial(train, **changes))


def sum_of(terms: Iterable[torch.Tensor]) -> torch.Tensor:
    """The sum of at least one scalar tensor."""
    return torch.stack(list(terms)).sum()


def published_beside(report: FitReport, statistics: Arrays, summarised: int) -> FitReport:
    """``report`` with a rule's ``statistics`` of so many images beside the method's. Their names
    begin with :data:`~fedshift.client.contract.method.OF_RULES`."""
    if report.statistics:
        summarised = min(summarised, report.summarised)
    report.statistics = {**report.statistics, **statistics}
    report.summarised = summarised
    return report


def scale_of(optimizer: Optimizer) -> torch.Tensor | float:
    """By what the gradients are scaled when ``before_step`` sees them: mixed precision leaves it to
    a fused optimiser to undo its loss scale. 1 otherwise."""
    scale: torch.Tensor | None = getattr(optimizer, "grad_scale", None)
    return 1.0 if scale is None else scale


def parameters_of(optimizer: Optimizer) -> Iterator[torch.Tensor]:
    """The parameters that ``optimizer`` steps."""
    for group in optimizer.param_groups:
        yield from group["params"]


@contextmanager
def _stepping(rules: Sequence[LocalRule]) -> Iterator[None]:
    """Call the rules around every step of any optimiser."""

    def before(optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        for rule in rules:
            rule.before_step(optimizer)

    def after(optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        for rule in rules:
            rule.after_step(optimizer)

    handles = [register_optimizer_step_pre_hook(before), register_optimizer_step_post_hook(after)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
