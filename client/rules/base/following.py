"""Whether a method's training let the rules of a strategy act: one that did not is plain averaging
under the strategy's name, which nothing else would tell."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch.optim import Optimizer
from torch.optim.optimizer import register_optimizer_step_pre_hook

from fedshift import Tellable
from fedshift.client.contract.method import Budget, FitReport
from fedshift.client.contract.step import Composed
from fedshift.client.methods import METHODS
from fedshift.client.model import Model
from fedshift.client.rules.base import LocalRule
from fedshift.protocol.registry import in_words


def following(
    rules: Sequence[LocalRule], model: Model, fit: Callable[[Budget], FitReport]
) -> Callable[[Budget], FitReport]:
    """``fit`` of the method of ``model``, for :func:`~fedshift.client.rules.base.run_rules`.

    It raises :class:`fedshift.UserError` after a training of weights that did not ask for all that
    ``rules`` would change in it.
    """
    if not rules:
        return fit
    sharing, stepped = model.method.sharing(model.task), model.method.stepped
    named = " and ".join(in_words(type(rule)) for rule in rules)

    def followed(budget: Budget) -> FitReport:
        step, stepping = budget.step, False
        assert isinstance(step, Composed)

        def note(optimizer: Optimizer, args: object, kwargs: object) -> None:
            nonlocal stepping
            stepping = True

        before = {
            name: [tensor.detach().clone() for tensor in net.parameters()]
            for name, net in model.nets.items()
        }
        handle = register_optimizer_step_pre_hook(note)
        try:
            report = fit(budget)
        finally:
            handle.remove()
        moved = {
            name: net
            for name, net in model.nets.items()
            if not all(map(torch.equal, before[name], net.parameters()))
        }
        lacking = ""
        if moved and not stepping and any(map(_at_optimisers, rules)):
            lacking = "steps no optimiser of torch"
        # Of these a training leaves gradients, and the weights as they were.
        moved |= {n: model.nets[n] for n in report.trained if sharing[n].kind == "summed"}
        if unasked := step.unasked(moved, stepped):
            lacking = f"never asks budget.step for {unasked}"
        if lacking:
            raise Tellable(
                f"method={METHODS.name_of(type(model.method))} {lacking}, so that the strategy's "
                f"rule {named} would change nothing: let its loops follow budget.step "
                "(docs/adding_a_method.md), or choose another strategy"
            )
        return report

    return followed


def _at_optimisers(rule: LocalRule) -> bool:
    """Whether the rule acts when an optimiser steps."""
    hooks = ("before_step", "after_step")
    return any(getattr(type(rule), hook) is not getattr(LocalRule, hook) for hook in hooks)
