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
from collections.abc import Iterator
from itertools import islice
from typing import Any

from fedshift.protocol.flower import ConfigRecord, Grid, Message
from fedshift.protocol.messages import (
    unpack_arrays,
)
from fedshift.protocol.storage import write_atomic
from fedshift.server import checkpoint, tracking
from fedshift.server.exchange import exchange
from fedshift.server.plan import RunPlan
from fedshift.server.progress import Progress
from fedshift.server.record import read_rounds
from fedshift.server.training import Arm, Training
from fedshift.strategies.base import Strategy
from fedshift.strategies.base.clock import Timing


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
        model, _ = arm.strategy.aggregate_train(number, arm.heard(replies))
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
            told = set(arm.strategy.outcome.rejected)
            arm.strategy.aggregate_evaluate(number, replies)
            for name in sorted(arm.strategy.outcome.rejected.keys() - told):
                reason = arm.strategy.outcome.rejected[name]
                progress.say(f"{label}: the validation of site {name} was rejected: {reason}")

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
    training.charge(plan, line)
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
                **({"weight_share": outcome.shares[name]} if name in outcome.shares else {}),
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
