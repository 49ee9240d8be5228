"""What a run is to do: its arms, what it may spend, and where it is written."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

from fedshift.protocol.messages import (
    Action,
    Instruction,
)
from fedshift.server.pairs import Choice
from fedshift.strategies.base import Strategy
from fedshift.strategies.base.clock import Clock


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
    line is about to be written (a simulation collects the sites' ledgers then). Where the sites
    are the user's ``own_sites``, as in a simulation, one that cannot open its data is a mistake to
    be mended before the run begins; others are left out and named.

    Of a deployed run ``run``, ``data`` and ``about`` are as in the
    :class:`~fedshift.protocol.messages.Instruction`, and ``sites`` are the names of those that take
    part, of all that are connected (empty: all).
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
    own_sites: bool = False
    run: str = ""
    data: Mapping[str, Any] = field(default_factory=dict)
    about: Mapping[str, str] = field(default_factory=dict)
    sites: tuple[str, ...] = ()
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
            run=self.run,
            data=dict(self.data),
            about=dict(self.about),
        )
