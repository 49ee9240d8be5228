"""A run in the coordinator's memory: set up, checked, and resumed where it stood."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from fedshift import UserError
from fedshift.protocol.answers import Unfit, read_method
from fedshift.protocol.cards import MethodCard
from fedshift.protocol.flower import ArrayRecord, Message
from fedshift.protocol.messages import (
    ERROR_CLOSED,
    ERROR_REFUSED,
    POOLED,
    Action,
    Arrays,
    Instruction,
    pack_arrays,
)
from fedshift.protocol.needs import check_offered
from fedshift.protocol.storage import keep_lines, read_json
from fedshift.server import checkpoint
from fedshift.server.federation import Sites, answered
from fedshift.server.plan import RunPlan
from fedshift.server.record import read_rounds
from fedshift.strategies.base import Strategy

_WITNESSES = 3
"""How many sites are asked for the method's card and the first weights."""


@dataclass
class Arm:
    """One strategy's progress: its current model, as it travels, and why the sites that last
    refused to train did so."""

    strategy: Strategy
    model: ArrayRecord
    refusals: dict[str, str] = field(default_factory=dict)

    def site_of(self, node: int) -> str:
        """The name of the site at ``node``."""
        return self.strategy.names[node]

    def heard(self, replies: Iterable[Message]) -> Iterator[Message]:
        """The ``replies`` to a request to train, as they come; notes who refuses.

        Raises :class:`UserError` after the last one when every site that trains refuses: a policy
        says the same in the next round.
        """
        for reply in replies:
            name = self.site_of(reply.metadata.src_node_id)
            if reply.has_error() and reply.error.code in (ERROR_REFUSED, ERROR_CLOSED):
                self.refusals[name] = reply.error.reason or "no reason given"
            else:
                self.refusals.pop(name, None)
            yield reply
        if self.refusals.keys() >= self.strategy.sites.keys():
            name, reason = min(self.refusals.items())
            raise UserError(
                f"every site refuses to train {self.strategy.model} "
                f"(strategy={self.strategy.name}), such as {name}: {reason}; have the sites' "
                "policies allow it or ask for something else, and go on with resume=true"
            )


@dataclass
class Training:
    """A run in the coordinator's memory: its sites, what its requests start from, its method, its
    arms, how many rounds are done, what its budget spent after each, and why they ended early."""

    sites: Sites
    instruction: Instruction
    method: MethodCard
    arms: list[Arm]
    done: int
    spent: list[float] = field(default_factory=list)
    ended: str | None = None

    def charge(self, plan: RunPlan, line: Mapping[str, Any]) -> None:
        """Charge a round to the plan's budget. Where nothing is exchanged no bytes are counted."""
        if plan.budget is None:
            return
        if plan.budget.kind == "bytes" and not plan.strategies[0].exchanges:
            return
        before = self.spent[-1] if self.spent else 0.0
        self.spent.append(plan.budget.spent(line, before))
        self.ended = plan.budget.ends(self.spent)


def prepare(sites: Sites, plan: RunPlan) -> Training:
    """Set every arm up as it stands after the last checkpoint, or at the initial weights.

    Raises :class:`UserError` when the method cannot train at the federation's sites.
    """
    unlabelled = [name for name in sites.trainable if not sites.cards[name].has_labels]
    one = sites.cards[sites.labelled[0]]
    task = {
        **plan.task,
        "size": list(one.size),
        "in_channels": one.channels,
        "unlabelled": unlabelled,
    }
    instruction = plan.instruction.but(task=task)
    method, initial = _method(sites, plan, instruction)
    roster = Roster(
        sites.nodes,
        tuple(sites.labelled),
        tuple(unlabelled),
        tuple(name for name in sites.labelled if not sites.cards[name].complete),
        sites.scored,
    )
    begin(plan, method, roster, instruction)
    for strategy in plan.strategies:
        cards = {name: sites.cards[name] for name in strategy.sites}
        strategy.examples = {name: card.splits["train"]["slices"] for name, card in cards.items()}
    arms = [Arm(strategy, pack_arrays(strategy.shared(initial))) for strategy in plan.strategies]
    done = checkpoint.last_round(plan.checkpoints)
    if done:
        held = checkpoint.load(plan.checkpoints, done, plan.identity)
        arms[0].model = pack_arrays(held.model)
        arms[0].strategy.bank, arms[0].strategy.state = held.bank, held.state
    keep_lines(plan.out / "rounds.jsonl", lambda line: line["round"] <= done)
    training = Training(sites, instruction, method, arms, done)
    lines = read_rounds(plan.out)
    if [line["round"] for line in lines] != list(range(1, done + 1)):
        raise UserError(
            f"{plan.out / 'rounds.jsonl'} does not hold the rounds 1 to {done}, each once; restore "
            "it from a copy or choose another out=DIR"
        )
    for line in lines:
        training.charge(plan, line)
        for arm in arms:
            part = line if arm is arms[0] else line["baselines"][arm.strategy.model]
            arm.strategy.now = part.get("clock_s", 0.0)
    return training


@dataclass(frozen=True)
class Roster:
    """The sites of a run: the node of each, the names of those that train with labels and without,
    sorted, those of the former whose labels tell of some parts only, and all that are scored."""

    nodes: Mapping[str, int]
    labelled: Sequence[str]
    unlabelled: Sequence[str]
    partial: Sequence[str]
    scored: Collection[str]


def begin(plan: RunPlan, method: MethodCard, roster: Roster, instruction: Instruction) -> None:
    """Bind the plan's strategies to the run that they are to make of ``method`` at these sites.

    Raises :class:`UserError` when method, strategies and sites cannot be combined.
    """
    _check_roles(method, roster.unlabelled, plan)
    if method.complete_labels and roster.partial:
        raise UserError(
            f"method={plan.method['name']} needs labels that tell of everything, and those of "
            f"{roster.partial[0]} tell of some parts only; choose another method, or leave such "
            "sites' labels out with data.unlabelled_sites"
        )
    if plan.clock is not None:
        plan.clock.check(roster.scored)
    for strategy in plan.strategies:
        names, steps = list(roster.labelled), plan.local_steps
        if method.participation != "labelled":
            names = sorted([*names, *roster.unlabelled])
        if strategy.pools:
            names, steps = [POOLED], steps * len(names)
        elif not strategy.exchanges:
            names = list(roster.labelled)
        strategy.begin(
            {name: roster.nodes[name] for name in names},
            method.tensors,
            instruction.but(steps=steps),
        )
        strategy.headline = method.task.headline
        strategy.clock = plan.clock


def _check_roles(method: MethodCard, unlabelled: Sequence[str], plan: RunPlan) -> None:
    """Raise :class:`UserError` when a method and a strategy cannot be combined, or a method that
    adapts from labelled to unlabelled sites lacks the latter, or is to be trained where sites do
    not meet."""
    name = plan.method["name"]
    for strategy in plan.strategies:
        if strategy.clocked and plan.clock is None:
            raise UserError(
                f"strategy={strategy.name} decides by the simulated clock, and there is none; add "
                "clock=hospitals or clock=lan"
            )
        check_offered(strategy.name, strategy.needs(), name, plan.task["name"], method.offers)
    if method.participation != "both":
        return
    if not unlabelled:
        raise UserError(
            f"method={name} adapts to sites without labels and every training site has some; name "
            "the target sites in data.unlabelled_sites"
        )
    for strategy in plan.strategies:
        if not strategy.exchanges:
            raise UserError(
                f"method={name} trains between sites, which {strategy.model} training keeps apart; "
                + (
                    "choose another strategy"
                    if strategy is plan.strategies[0]
                    else f"leave {strategy.model} out of baselines"
                )
            )


def _method(sites: Sites, plan: RunPlan, instruction: Instruction) -> tuple[MethodCard, Arrays]:
    """The method's card and the weights all sites start from, asked of the first one that trains:
    the coordinator itself knows no network. A resumed run needs the card alone."""
    path = plan.checkpoints / "method.json"
    if (described := read_json(path, MethodCard.from_json)) is not None:
        return described, {}
    if plan.own_sites:
        (_, reply), *_ = sites.ask(sites.labelled[:1], instruction.but(action=Action.INITIAL))
        try:
            return read_method(answered(reply), plan.task["name"], plan.task["parts"])
        except Unfit as fault:
            raise UserError(f"site {sites.labelled[0]}: {fault}") from fault
    return _witnessed(sites, plan, instruction.but(action=Action.INITIAL))


def _witnessed(sites: Sites, plan: RunPlan, ask: Instruction) -> tuple[MethodCard, Arrays]:
    """The card and the weights that most of the first few sites agree on: they follow from the
    run's seed, and a coordinator that knows no network cannot tell a false answer by itself."""
    for start in range(0, len(sites.labelled), _WITNESSES):
        agreeing: dict[bytes, list[str]] = {}
        held: dict[bytes, tuple[MethodCard, Arrays]] = {}
        for name, reply in sites.ask(sites.labelled[start : start + _WITNESSES], ask):
            try:
                found = read_method(answered(reply), plan.task["name"], plan.task["parts"])
            except Unfit as fault:
                sites.problems.append(f"method of the run, asked of {name}: {fault}")
                continue
            digest = _digest(*found)
            agreeing.setdefault(digest, []).append(name)
            held.setdefault(digest, found)
        if held:
            most = max(agreeing, key=lambda digest: len(agreeing[digest]))
            sites.problems += [
                f"method of the run, asked of {name}: sent other networks than {agreeing[most][0]}"
                for digest, names in agreeing.items()
                for name in names
                if digest != most
            ]
            return held[most]
    raise UserError(f"no site can train: {sites.problems[-1]}")


def _digest(card: MethodCard, arrays: Arrays) -> bytes:
    found = hashlib.blake2b(json.dumps(card.to_json(), sort_keys=True).encode())
    for name in sorted(arrays):
        found.update(np.ascontiguousarray(arrays[name]).data)
    return found.digest()
