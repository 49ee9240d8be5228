"""The round loop: select, send, gather, aggregate, checkpoint, resume.

A run has one or more *arms* that advance together, round by round: the strategy asked for, and
the references it is compared with (``local``, ``pooled``). A line of ``rounds.jsonl`` and a
checkpoint cover all of them.
"""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice, pairwise
from pathlib import Path
from typing import Any, Literal

from fedshift import UserError
from fedshift.protocol.cards import MethodCard, SiteCard
from fedshift.protocol.flower import ArrayRecord, ConfigRecord, Grid, Message
from fedshift.protocol.measures import TaskCard
from fedshift.protocol.messages import (
    ANSWER,
    POOLED,
    Action,
    Arrays,
    Instruction,
    details,
    pack_arrays,
    read_arrays,
    request,
    unpack_arrays,
)
from fedshift.protocol.needs import NEEDS
from fedshift.protocol.storage import keep_lines, read_json, read_json_lines, write_atomic
from fedshift.server import checkpoint, tracking
from fedshift.server.exchange import exchange
from fedshift.server.pairs import Choice
from fedshift.server.progress import Progress
from fedshift.strategies.base import Strategy
from fedshift.strategies.base.clock import Clock, Timing


@dataclass(frozen=True)
class ResourceBudget:
    """What a run may spend: its rounds end before the next one would pass ``limit``.

    Of ``bytes`` counts what the strategy's messages bring to and from all sites together, in
    training and validation; of ``time`` the simulated clock, in seconds. The next round is taken
    to cost as much as the costliest so far. The first one is always run: without it there is no
    model, and only it tells what a round costs.
    """

    kind: Literal["bytes", "time"]
    limit: float

    def spent(self, line: Mapping[str, Any], before: float) -> float:
        """What is spent after a round, from its line and what was spent ``before`` it."""
        if self.kind == "time":
            return float(line["clock_s"])
        return before + float(line["bytes_down"] + line["bytes_up"])

    def ends(self, spent: Sequence[float]) -> str | None:
        """Why no round may follow, or None; ``spent`` is what was spent after each round."""
        costliest = max(after - before for before, after in pairwise([0.0, *spent]))
        if spent[-1] + costliest <= self.limit:
            return None
        numbers = (spent[-1], self.limit, costliest)
        told = [f"{number:,.0f}" if self.kind == "bytes" else f"{number:g}" for number in numbers]
        unit = "bytes" if self.kind == "bytes" else "s"
        return (
            f"another round would pass budget_limit: {told[0]} of {told[1]} {unit} are spent, and "
            f"a round took up to {told[2]}"
        )


@dataclass(frozen=True)
class RunPlan:
    """Everything the coordinator needs to know of a run.

    ``strategies`` are the arms, the one asked for first. ``identity`` is the config's fingerprint.
    Every ``validate_every`` rounds the models are scored on validation (0: never); ``evaluated``
    lists which models enter the cross-site matrix, ``shift_pairs`` which pairs of sites have their
    images compared. Of the checkpoints the newest
    ``checkpoints_kept`` stay (None: all). A ``budget`` may end the run before ``rounds``. With a
    ``clock`` rounds take simulated time, in which sites may be slow or away.
    ``tracking`` names the sinks that are fed each round. ``told`` is what the run's settings were
    chosen from: a simulation reads it off its sites' files beforehand, and asks for it once more,
    so that it stands in their ledgers. ``after_round`` is called when a round's
    line is about to be written (a simulation collects the sites' ledgers then).
    """

    out: Path
    identity: str
    seed: int
    rounds: int
    local_steps: int
    method: Mapping[str, Any]
    task: Mapping[str, Any]
    strategies: tuple[Strategy, ...]
    validate_every: int = 1
    evaluated: tuple[str, ...] = ("local", "personal", "global", "pooled")
    shift_pairs: Choice = "auto"
    checkpoints_kept: int | None = None
    deadline_s: float | None = None
    budget: ResourceBudget | None = None
    clock: Clock | None = None
    tracking: tuple[str, ...] = ()
    told: tuple[Action, ...] = ()
    after_round: Callable[[], None] = lambda: None

    def validates(self, number: int) -> bool:
        """Whether the models are scored on validation after round ``number``."""
        every = self.validate_every
        return every > 0 and (number % every == 0 or number == self.rounds)

    @property
    def checkpoints(self) -> Path:
        """The run's checkpoint folder."""
        return self.out / "checkpoints"

    @property
    def instruction(self) -> Instruction:
        """What every request of the run starts from, before the sites are known."""
        return Instruction(
            action=Action.NAME,
            seed=self.seed,
            method=dict(self.method),
            task=dict(self.task),
            rounds=self.rounds,
        )


@dataclass
class Sites:
    """The federation as the coordinator knows it: each site's node and card."""

    grid: Grid
    nodes: dict[str, int]
    cards: dict[str, SiteCard]
    deadline_s: float | None = None

    @property
    def names(self) -> dict[int, str]:
        """Site names by node."""
        return {node: name for name, node in self.nodes.items()}

    @property
    def labelled(self) -> list[str]:
        """The sites that train and have labels, sorted."""
        return [name for name in self.trainable if self.cards[name].has_labels]

    @property
    def trainable(self) -> list[str]:
        """The sites that may train, with labels or without, sorted."""
        return sorted(name for name, card in self.cards.items() if card.trains and name != POOLED)

    @property
    def scored(self) -> list[str]:
        """The sites on which models are scored, sorted: all real ones."""
        return sorted(name for name in self.nodes if name != POOLED)

    def ask(
        self,
        names: list[str],
        instruction: Instruction,
        arrays: ArrayRecord | None = None,
        bank: ArrayRecord | None = None,
        questions: Mapping[str, Mapping[str, Any]] | None = None,
    ) -> Iterator[tuple[str, Message]]:
        """Send one request to each of ``names``; yield their replies in that order.

        ``questions`` hold what only one site is asked.
        """
        shared = request(instruction, arrays, bank=bank)
        messages = [
            Message(
                content=request(instruction, arrays, statistics=questions[name])
                if questions
                else shared,
                dst_node_id=self.nodes[name],
                message_type=instruction.action.message_type,
                group_id=str(instruction.round),
            )
            for name in names
        ]
        by_node = self.names
        for reply in exchange(self.grid, messages, self.deadline_s):
            yield by_node[reply.metadata.src_node_id], reply


def find(grid: Grid, instruction: Instruction) -> dict[str, int]:
    """The node of every site that the grid reaches, by the site's name, sorted.

    Raises :class:`UserError` when a site does not answer.
    """
    hello = request(instruction.but(action=Action.NAME))
    messages = [
        Message(content=hello, dst_node_id=node, message_type=Action.NAME.message_type)
        for node in grid.get_node_ids()
    ]
    nodes = {}
    for reply in exchange(grid, messages, None):
        if reply.has_error():
            raise UserError(f"a site does not answer: {reply.error.reason}")
        record = reply.content[ANSWER]
        assert isinstance(record, ConfigRecord)
        nodes[str(record["site"])] = reply.metadata.src_node_id
    return dict(sorted(nodes.items()))


def meet(grid: Grid, plan: RunPlan) -> Sites:
    """Find out which sites there are, and what each says of itself.

    Cards are asked for once a run and kept in ``checkpoints/sites.json``. Raises
    :class:`UserError` when a site cannot open its data, none can train, or a part is labelled
    nowhere.
    """
    sites = Sites(grid, find(grid, plan.instruction), {}, plan.deadline_s)
    path = plan.checkpoints / "sites.json"
    cards = read_cards(path)
    if cards is None:
        _ask_again(sites, plan)
        cards = []
        problems = []
        ask = plan.instruction.but(action=Action.CARD)
        for name, reply in sites.ask(list(sites.nodes), ask):
            if reply.has_error():
                problems.append(f"site {name}: {reply.error.reason}")
            else:
                cards.append(SiteCard.from_json(details(reply.content)))
        if problems:
            more = f" (and {len(problems) - 1} more sites)" if len(problems) > 1 else ""
            raise UserError(problems[0] + more)
        write_atomic(path, json.dumps([card.to_json() for card in cards], indent=1) + "\n")
    sites.cards = {card.name: card for card in cards}
    unread = [note for card in cards for note in card.notes if note.startswith("left out: ")]
    # Labels that could not be read are no labels that nobody drew.
    because = f" ({unread[0]})" if unread else ""
    if not sites.labelled:
        raise UserError(
            f"no site can train: none has a labelled training image{because}; check the manifest "
            "with `fedshift sites check`"
        )
    found = set().union(*(sites.cards[name].labelled for name in sites.labelled))
    absent = [name for name in plan.task["parts"] if name not in found]
    if absent:
        untold = [name for name in sites.labelled if not sites.cards[name].teaches[absent[0]]]
        if len(untold) == len(sites.labelled):
            raise UserError(
                f"no site that trains annotates '{absent[0]}': take it out of data.labels, or add "
                "it to a site in data.annotates"
            )
        raise UserError(
            f"'{absent[0]}' is to be learnt and labelled nowhere{because}: the training labels "
            f"hold {len(found)} of {len(plan.task['parts'])} names; take it out of data.labels or "
            "correct its value"
        )
    return sites


def read_cards(path: Path) -> list[SiteCard] | None:
    """The site cards of a run's ``sites.json``, None before there is one; raises
    :class:`UserError` when it is damaged."""

    def parse(node: Any) -> list[SiteCard]:
        if not node:
            raise ValueError("it names no site")
        return [SiteCard.from_json(fields) for fields in node]

    return read_json(path, parse)


def read_task(run: Path) -> TaskCard | None:
    """What the run in that folder measures, None before its first round is done; where each site is
    left out in turn, any fold says it. Raises :class:`UserError` when ``method.json`` is damaged.
    """
    for folder in (run, *sorted(run.glob("folds/*"))):
        card = read_json(folder / "checkpoints" / "method.json", MethodCard.from_json)
        if card is not None:
            return card.task
    return None


def _ask_again(sites: Sites, plan: RunPlan) -> None:
    """Have the sites note what the settings were chosen from; kept in ``checkpoints``."""
    for action in plan.told:
        answers = {
            name: None if reply.has_error() else details(reply.content)
            for name, reply in sites.ask(sites.scored, plan.instruction.but(action=action))
        }
        if action is Action.SUMMARY:
            text = json.dumps(answers, indent=1, sort_keys=True)
            write_atomic(plan.checkpoints / "summaries.json", text + "\n")


@dataclass
class Arm:
    """One strategy's progress: its current model, as it travels."""

    strategy: Strategy
    model: ArrayRecord

    def site_of(self, node: int) -> str:
        """The name of the site at ``node``."""
        return self.strategy.names[node]


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


def prepare(sites: Sites, plan: RunPlan) -> Training:
    """Set every arm up as it stands after the last checkpoint, or at the initial weights.

    Raises :class:`UserError` when the method cannot train at the federation's sites.
    """
    unlabelled = [name for name in sites.trainable if not sites.cards[name].has_labels]
    one = sites.cards[sites.labelled[0]]
    for other in sites.cards.values():
        if other.channels != one.channels:
            raise UserError(
                f"the images of {one.name} have {one.channels} channels and those of {other.name} "
                f"{other.channels}: a network takes one number; bring them to the same, or leave "
                "one of the sites out with data.sites"
            )
    task = {
        **plan.task,
        "size": list(one.size),
        "in_channels": one.channels,
        "unlabelled": unlabelled,
    }
    instruction = plan.instruction.but(task=task)
    method, initial = _method(sites, plan, instruction)
    _check_roles(method, unlabelled, plan)
    _check_labels(method, sites, plan)
    if plan.clock is not None:
        plan.clock.check(sites.scored)
    arms = []
    for strategy in plan.strategies:
        names = sites.labelled if method.participation == "labelled" else sites.trainable
        steps = plan.local_steps
        if strategy.pools:
            names, steps = [POOLED], steps * len(names)
        elif not strategy.exchanges:
            names = sites.labelled
        strategy.begin(
            {name: sites.nodes[name] for name in names},
            method.tensors,
            instruction.but(steps=steps),
        )
        strategy.validated = f"val_{method.task.headline.name}"
        strategy.clock = plan.clock
        arms.append(Arm(strategy, pack_arrays(strategy.shared(initial))))
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
        _charge(training, plan, line)
        for arm in arms:
            part = line if arm is arms[0] else line["baselines"][arm.strategy.model]
            arm.strategy.now = part.get("clock_s", 0.0)
    return training


def read_rounds(run: Path) -> list[dict[str, Any]]:
    """The lines of a run's ``rounds.jsonl``; none before its first round is done. Raises
    :class:`UserError` for a damaged one."""

    def parse(line: Any) -> dict[str, Any]:
        if not isinstance(line, dict) or not isinstance(line["round"], int):
            raise ValueError("it is no round's line")
        for key, kind in (("sites", dict), ("failed", dict), ("rejected", dict)):
            if not isinstance(line[key], kind):
                raise ValueError(f"{key} is no {kind.__name__}")
        return line

    return read_json_lines(run / "rounds.jsonl", parse)


def _charge(training: Training, plan: RunPlan, line: Mapping[str, Any]) -> None:
    """Charge a round to the plan's budget. Where nothing is exchanged no bytes are counted."""
    if plan.budget is None:
        return
    if plan.budget.kind == "bytes" and not plan.strategies[0].exchanges:
        return
    before = training.spent[-1] if training.spent else 0.0
    training.spent.append(plan.budget.spent(line, before))
    training.ended = plan.budget.ends(training.spent)


def _check_roles(method: MethodCard, unlabelled: list[str], plan: RunPlan) -> None:
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
        if lacking := sorted(strategy.needs().difference(method.offers)):
            raise UserError(
                f"strategy={strategy.name} needs {NEEDS.get(lacking[0], lacking[0])}, which "
                f"method={name} with task={plan.task['name']} does not offer; choose another "
                "strategy or another method"
            )
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


def _check_labels(method: MethodCard, sites: Sites, plan: RunPlan) -> None:
    """Raise :class:`UserError` when a method needs more of the labels than some site's tell."""
    partial = [name for name in sites.labelled if not sites.cards[name].complete]
    if method.complete_labels and partial:
        raise UserError(
            f"method={plan.method['name']} needs labels that tell of everything, and those of "
            f"{partial[0]} tell of some parts only; choose another method, or leave such sites' "
            "labels out with data.unlabelled_sites"
        )


def train(training: Training, plan: RunPlan, progress: Progress) -> None:
    """Run the rounds that are not done yet, or those that the budget allows; the arms then hold the
    last models."""
    if training.done:
        progress.say(f"resuming after round {training.done} of {plan.rounds}")
    with tracking.opened(plan.out, plan.tracking, read_rounds(plan.out)) as sinks:
        while training.done < plan.rounds and training.ended is None:
            line = _round(training.done + 1, training, plan, progress)
            training.done += 1
            for sink in sinks:
                sink.add(line)
    if training.ended and training.done < plan.rounds:
        progress.say(f"ended after round {training.done} of {plan.rounds}: {training.ended}")


def messages_left(training: Training, plan: RunPlan) -> int:
    """How many site messages the rounds that are not done yet will take."""
    per_pass = sum(len(arm.strategy.sites) for arm in training.arms)
    left = range(training.done + 1, plan.rounds + 1)
    return sum(per_pass * (2 if plan.validates(number) else 1) for number in left)


def _method(sites: Sites, plan: RunPlan, instruction: Instruction) -> tuple[MethodCard, Arrays]:
    """The method's card and the weights all sites start from, asked of the first one that trains:
    the coordinator itself knows no network. A resumed run needs the card alone."""
    path = plan.checkpoints / "method.json"
    if (described := read_json(path, MethodCard.from_json)) is not None:
        return described, {}
    first = sites.labelled[0]
    (_, reply), *_ = sites.ask([first], instruction.but(action=Action.INITIAL))
    if reply.has_error():
        raise UserError(f"site {first}: {reply.error.reason}")
    return MethodCard.from_json(details(reply.content)), read_arrays(reply.content)


def _round(number: int, training: Training, plan: RunPlan, progress: Progress) -> dict[str, Any]:
    """Run a round; returns its line."""
    start = time.perf_counter()
    grid, config = training.sites.grid, ConfigRecord()
    label = f"round {number}/{plan.rounds}"

    asked = [
        (arm, list(arm.strategy.configure_train(number, arm.model, config, grid)))
        for arm in training.arms
    ]
    for arm, replies in _replies(asked, plan, grid, progress, f"{label}: trained"):
        model, _ = arm.strategy.aggregate_train(number, replies)
        if model is not None:
            arm.model = model
        arm.strategy.pass_time(number)
        _tell(arm.strategy, label, progress)
    if plan.validates(number):
        asked = [
            (arm, list(arm.strategy.configure_evaluate(number, arm.model, config, grid)))
            for arm in training.arms
        ]
        for arm, replies in _replies(asked, plan, grid, progress, f"{label}: validated"):
            arm.strategy.aggregate_evaluate(number, replies)

    plan.after_round()
    return _write_round(number, training, plan, time.perf_counter() - start)


def _replies(
    asked: list[tuple[Arm, list[Message]]],
    plan: RunPlan,
    grid: Grid,
    progress: Progress,
    what: str,
) -> Iterator[tuple[Arm, Iterator[Message]]]:
    """Send the messages of all arms at once; yield each arm with its replies, by site name."""
    ordered = [
        (arm, sorted(messages, key=lambda message: arm.site_of(message.metadata.dst_node_id)))
        for arm, messages in asked
    ]
    # The longest first, so that no worker is left waiting for it at the end.
    steps = {id(m): arm.strategy.instruction.steps for arm, messages in ordered for m in messages}
    replies = exchange(
        grid,
        [message for _, messages in ordered for message in messages],
        plan.deadline_s,
        priority=lambda message: steps[id(message)],
    )

    def watched(arm: Arm, count: int) -> Iterator[Message]:
        for reply in islice(replies, count):
            name = arm.site_of(reply.metadata.src_node_id)
            progress.advance(f"{what} {name} ({arm.strategy.model})")
            if reply.has_error():
                progress.say(f"{what}: site {name} failed: {reply.error.reason}")
            yield reply

    for arm, messages in ordered:
        yield arm, watched(arm, len(messages))


def _tell(strategy: Strategy, label: str, progress: Progress) -> None:
    """Say what was rejected, and why the model may have stayed as it was."""
    for name, reason in strategy.outcome.rejected.items():
        progress.say(f"{label}: the update of site {name} was rejected: {reason}")
    if strategy.outcome.skipped:
        progress.say(f"{label}: {strategy.model} stays as it was: {strategy.outcome.skipped}")


def _write_round(number: int, training: Training, plan: RunPlan, seconds: float) -> dict[str, Any]:
    """Append the round's line, then save the checkpoint; returns the line."""
    main, *references = training.arms
    line = {
        "round": number,
        **_line(main),
        "seconds": round(seconds, 3),
        "baselines": {arm.strategy.model: _line(arm) for arm in references},
    }
    _charge(training, plan, line)
    line["ended"] = training.ended if number < plan.rounds else None
    with (plan.out / "rounds.jsonl").open("a", encoding="utf-8") as file:
        file.write(json.dumps(line, sort_keys=True) + "\n")
        file.flush()
        os.fsync(file.fileno())
    if number == 1:
        described = json.dumps(training.method.to_json())
        write_atomic(plan.checkpoints / "method.json", described + "\n")
    held = checkpoint.Checkpoint(unpack_arrays(main.model), main.strategy.bank, main.strategy.state)
    checkpoint.save(plan.checkpoints, number, held, plan.identity, plan.checkpoints_kept)
    return line


def _line(arm: Arm) -> dict[str, Any]:
    """An arm's part of the round's line, with the seconds its sites trained; numbers that are not
    finite become null."""
    strategy, outcome = arm.strategy, arm.strategy.outcome
    spent = sum(metrics.get("seconds", 0.0) for metrics in outcome.sites.values())
    return {
        "seconds": round(spent, 3),
        "bytes_down": outcome.bytes_down.total(),
        "bytes_up": outcome.bytes_up.total(),
        "sites": {
            name: {
                **{
                    key.replace("num-examples", "examples"): value if math.isfinite(value) else None
                    for key, value in metrics.items()
                },
                "bytes_down": outcome.bytes_down[name],
                "bytes_up": outcome.bytes_up[name],
                **(_simulated(outcome.timings[name]) if name in outcome.timings else {}),
            }
            for name, metrics in outcome.sites.items()
        },
        "failed": outcome.failed,
        "rejected": outcome.rejected,
        "skipped": outcome.skipped,
        **(
            {}
            if strategy.clock is None
            else {
                "clock_s": strategy.now,
                "stragglers": outcome.stragglers,
                "dropouts": outcome.dropouts,
            }
        ),
    }


def _simulated(timing: Timing) -> dict[str, float]:
    """A site's part of the line on a simulated clock: when it was sent the model, how long it took
    to answer, and how much of that was transfer."""
    return {
        "simulated_start_s": timing.start_s,
        "simulated_s": timing.seconds,
        "download_s": timing.download_s,
        "upload_s": timing.upload_s,
    }
