"""What a strategy changes in a site's local training, whatever the method.

A method trains as its paper says. A rule acts beside it: it changes the steps of training
(:class:`~fedshift.client.contract.step.Step`), looks at or changes gradients and weights whenever
an optimiser steps, trains a second model, or measures. It is built for one training (a
:class:`Visit`) and dropped after it; what it notes for the next one goes into ``visit.memory``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, ClassVar, Protocol

import numpy as np
import torch
from torch.optim import Optimizer
from torch.optim.optimizer import (
    register_optimizer_step_post_hook,
    register_optimizer_step_pre_hook,
)

from fedshift import UserError
from fedshift.client.contract.method import Budget, FitReport, Scene, StatisticsBank
from fedshift.client.contract.step import Composed, Step, hooks
from fedshift.client.model import Model
from fedshift.protocol.messages import Arrays, Instruction
from fedshift.protocol.needs import CHANGE, DESCEND
from fedshift.protocol.registry import in_words
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
    """Runs the method's training once on the weights now loaded: with a ``step`` after those of the
    rules, and with what it noted itself in ``memory`` in place of the site's."""

    def __call__(self, *, step: Step | None = None, memory: Arrays | None = None) -> FitReport: ...


Images = Sequence[np.ndarray] | np.ndarray
"""Slices, S of (C, H, W) float32."""


class LocalRule:
    """A rule that does nothing; its subclasses do, and take their settings as keywords."""

    step: Step | None = None
    """What it changes in the method's training steps; to be set before the training begins."""
    needs: ClassVar[frozenset[str]] = frozenset()
    """Which of :data:`~fedshift.protocol.needs.CHANGE` and ``DESCEND`` a step of it has of its own.
    The class says so, as a step may come in a later round only: what a strategy's rules need is
    checked before the run."""

    @classmethod
    def at_prediction(cls, scene: Scene, **settings: Any) -> Callable[[Images], Images] | None:
        """What is done to the images that a model of the rule predicts in ``scene``, whose bank
        holds what the rule published; None for nothing."""
        return None

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
    """``fit`` with all ``rules`` at work, the first one outermost; their steps are composed in the
    rules' order. Raises :class:`fedshift.UserError` for a step that does more than the rules'
    ``needs`` tell of."""
    told = frozenset().union(*(rule.needs for rule in rules))

    def train(*, step: Step | None = None, memory: Arrays | None = None) -> FitReport:
        steps = [found for found in (*(rule.step for rule in rules), step) if found is not None]
        for found in steps:
            if untold := sorted((hooks(found) & {CHANGE, DESCEND}) - told):
                named = " and ".join(in_words(type(rule)) for rule in rules)
                raise UserError(
                    f"the rule {named} has the step {type(found).__name__} with a {untold[0]} of "
                    f'its own; say so in its class: needs = frozenset({{"{untold[0]}"}})'
                )
        noted = budget.memory if memory is None else memory
        with _stepping(rules):
            return fit(replace(budget, step=Composed(steps), memory=noted))

    inner: Train = train
    for rule in reversed(rules):
        inner = partial(_within, rule, inner)
    return inner()


def _within(
    rule: LocalRule, train: Train, *, step: Step | None = None, memory: Arrays | None = None
) -> FitReport:
    return rule.around(partial(train, step=step, memory=memory))


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
