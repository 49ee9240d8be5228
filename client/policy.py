"""What a site allows: what may be done with its images, how often, and what may leave."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from datetime import time as clock_time
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from fedshift import UserError
from fedshift.protocol.messages import (
    ARMS,
    ERROR_CLOSED,
    ERROR_REFUSED,
    RELEASABLE,
    Action,
    Instruction,
    Purpose,
)
from fedshift.protocol.settings import from_mapping, setting, suggest
from fedshift.protocol.statistics import DOMAIN_RELABELLINGS
from fedshift.sites.settings import OF_A_RUN
from fedshift.sites.types import Split

_SHORTEST_SECRET = 16


ERROR_UNAPPROVED = 107
"""The code of an error answer about what the site's staff has yet to allow."""


class Refused(Exception):
    """The site's policy does not allow what was asked; the message says what and which key."""

    code = ERROR_REFUSED


class Unapproved(Refused):
    """Nobody at the site has approved of the run yet."""

    code = ERROR_UNAPPROVED


class Closed(Refused):
    """The site does not work at this time of day."""

    code = ERROR_CLOSED


UNMODELLED = frozenset({Action.NAME, Action.SUMMARY, Action.HASHES, Action.CARD})
"""What is answered without any model."""
_IN_ROUNDS = frozenset({Action.FIT, Action.VALIDATE})


@dataclass(frozen=True)
class Policy:
    """A site's rules. The defaults allow everything a simulation needs and never an image.

    ``methods`` and ``rules``: names of the methods, and of the local rules of strategies, that may
    run here, or ``("*",)`` for all. ``release``: which purposes may leave. ``splits``: those whose
    images models may be scored on, and ``scores``: what is told of them, a row a case or
    (``site``) the means over the site to three digits. ``pseudonyms``: subjects and cases leave as
    codes that only the site can resolve. ``texts``: what sentences may say, all (``full``) or rows
    and reasons without any file, subject or host (``rows``).

    ``min_count``: fewest images that a published statistic may summarise, and ``min_subjects``:
    fewest subjects behind it, behind an update and behind a mean of scores.

    ``sites``: how many sites the federation has at most. With it, questions are counted: a site
    trains and validates once an arm and round, and answers so many models and projections as
    ``matrices`` comparisons of that many sites take (a run that is made longer takes one more);
    None: they are not counted. ``max_rounds`` and ``max_steps``: of a run, and of a round.
    ``max_seconds`` and ``max_memory_mb``: what one request may take; None: no limit.
    ``max_message_mb``: the largest answer, in 10^6 bytes, and ``max_array_mb`` the largest array of
    one; None: no limit.

    The next ones are about the runs of others at a real site; a simulation's are all one's own.
    ``strategies``: names of those that a run may say it has, or ``("*",)``. ``data``: which
    settings of ``data`` a run may ask for (:data:`~fedshift.sites.settings.OF_A_RUN`). ``ask``:
    whether somebody at the site approves each run before anything but the site's name leaves for
    it. ``max_runs``: how many runs may ever ask something here; questions are counted by run.
    ``hours``: when the site works, local time (``20:00-06:00``); None: always.

    ``hash_key``: the file with the secret under which image hashes are sent, the same at every site
    that compares them; the coordinator must lack it.
    """

    methods: tuple[str, ...] = ("*",)
    rules: tuple[str, ...] = ("*",)
    release: tuple[str, ...] = tuple(p for p in RELEASABLE if p != Purpose.HASHES.value)
    splits: tuple[Split, ...] = ("val", "test")
    scores: Literal["cases", "site"] = "cases"
    pseudonyms: bool = False
    texts: Literal["full", "rows"] = "full"
    min_count: int = setting(4, at_least=1)
    min_subjects: int = setting(1, at_least=1)
    sites: int | None = setting(None, at_least=1)
    matrices: int = setting(1, at_least=1)
    max_rounds: int | None = setting(None, at_least=1)
    max_steps: int | None = setting(None, at_least=1)
    max_seconds: float | None = setting(None, at_least=1)
    max_memory_mb: float | None = setting(None, at_least=1)
    max_message_mb: float = setting(1000.0, at_least=0)
    max_array_mb: float | None = setting(None, at_least=0)
    strategies: tuple[str, ...] = ("*",)
    data: tuple[str, ...] = OF_A_RUN
    ask: bool = False
    max_runs: int | None = setting(None, at_least=1)
    hours: str | None = None
    hash_key: str | None = None

    def __post_init__(self) -> None:
        for key in self.data:
            if key not in OF_A_RUN:
                raise UserError(
                    f"policy.data holds {key!r}, which no run sets{suggest(key, OF_A_RUN)}"
                )
        if self.hours is not None:
            _hours(self.hours)
        for purpose in self.release:
            if purpose not in RELEASABLE:
                raise UserError(f"policy.release holds {purpose!r}{suggest(purpose, RELEASABLE)}")

        if (Purpose.HASHES in self.release) != (self.hash_key is not None):
            raise UserError(
                "image hashes leave a site under a secret only: name them in policy.release and "
                "the secret's file in policy.hash_key, or neither"
            )

        if self.max_memory_mb is not None and sys.platform != "linux":
            raise UserError(
                "policy.max_memory_mb is kept on Linux only; set it to null here, or run the site "
                "on Linux"
            )

    def releases(self, purpose: Purpose) -> bool:
        """Whether anything may leave for ``purpose``."""
        return purpose.value in self.release

    @cached_property
    def secret(self) -> bytes:
        """The content of ``hash_key``; raises :class:`UserError` when it cannot be read or is so
        short that it could be guessed."""
        path = Path(self.hash_key or "").expanduser()
        try:
            secret = path.read_bytes().strip()
        except OSError as error:
            raise UserError(
                f"policy.hash_key: {path} cannot be read ({error.strerror}); name the file with "
                "the secret that the sites share"
            ) from error
        if len(secret) < _SHORTEST_SECRET:
            raise UserError(
                f"policy.hash_key: {path} holds fewer than {_SHORTEST_SECRET} bytes, which can be "
                "guessed; fill it with random ones, as `openssl rand -hex 32` prints"
            )
        return secret

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> Policy:
        """Build from the config node ``policy``; raises :class:`UserError` naming the key."""
        return from_mapping(cls, {k: v for k, v in config.items() if k != "name"}, "policy")

    def check(self, instruction: Instruction, purpose: Purpose) -> None:
        """Raise :class:`Refused` unless what ``instruction`` asks for may be done here, and
        something may leave for ``purpose``."""
        action = instruction.action
        self.check_release(purpose)
        if action in UNMODELLED:
            return
        method = str(instruction.method.get("name", ""))
        if "*" not in self.methods and method not in self.methods:
            raise Refused(f"the site's policy does not allow method '{method}' (policy.methods)")
        for rule in instruction.rules:
            if "*" not in self.rules and rule not in self.rules:
                raise Refused(f"the site's policy does not allow the rule '{rule}' (policy.rules)")
        for split in ("val",) if action is Action.VALIDATE else instruction.splits:
            if split not in self.splits:
                raise Refused(
                    f"the site's policy lets no split '{split}' be scored (policy.splits)"
                )
        for asked, most, key in (
            (instruction.round, self.max_rounds, "rounds"),
            (instruction.steps, self.max_steps, "steps"),
        ):
            if most is not None and asked > most:
                raise Refused(
                    f"the site's policy allows {most} {key}, not {asked} (policy.max_{key})"
                )

    def most_questions(self, action: Action, stages: int) -> int | None:
        """How many different questions of this kind may be asked, in a run or, of training and
        validation, of an arm in a round; None: any number. ``stages`` has the method."""
        if self.sites is None or action in UNMODELLED or action is Action.INITIAL:
            return None
        if action in _IN_ROUNDS:
            return 1
        # Of every site its own and its personal model, then the global and the pooled one.
        matrix = {Action.SCORE: 2 * self.sites + 2 + stages, Action.MODEL: len(ARMS)}
        return self.matrices * matrix.get(action, 1)

    @property
    def most_projections(self) -> int | None:
        """How many projections of its images a site answers in one question: a pair's classifier
        and those of its relabellings, for each other site."""
        return None if self.sites is None else (1 + DOMAIN_RELABELLINGS) * (self.sites - 1)

    def check_run(self, instruction: Instruction, now: datetime) -> None:
        """Raise :class:`Refused` unless a run that says this of itself, and asks for these settings
        of ``data``, may be answered at the local time ``now``: :class:`Closed` where it may be at
        another time."""
        if self.hours is not None:
            start, end = _hours(self.hours)
            at = now.time()
            if not (start <= at < end if start < end else at >= start or at < end):
                raise Closed(
                    f"the site works from {self.hours.replace('-', ' to ')} (policy.hours)"
                )
        strategy = instruction.about.get("strategy", "")
        if "*" not in self.strategies and strategy not in self.strategies:
            raise Refused(
                f"the site's policy does not allow strategy '{strategy}' (policy.strategies)"
            )
        for key in sorted(instruction.data):
            if key not in OF_A_RUN:
                raise Refused(
                    "a request sets something of data that is the site's own; a run may set "
                    f"{', '.join(OF_A_RUN)} (policy.data)"
                )
            if key not in self.data:
                raise Refused(f"the site's policy lets no run set data.{key} (policy.data)")

    def check_release(self, purpose: Purpose) -> None:
        """Raise :class:`Refused` when nothing may leave for ``purpose``."""
        if purpose.value in RELEASABLE and not self.releases(purpose):
            raise Refused(f"the site's policy does not release a '{purpose}' (policy.release)")

    def check_size(self, size: int, largest: int = 0) -> None:
        """Raise :class:`Refused` when ``size`` bytes, or ``largest`` in one array or list, are more
        than may leave at once."""
        if self.max_array_mb is not None and largest > self.max_array_mb * 1e6:
            raise Refused(
                f"an array of {largest / 1e6:.1f} MB exceeds the site's limit of "
                f"{self.max_array_mb:g} MB (policy.max_array_mb)"
            )
        if size > self.max_message_mb * 1e6:
            raise Refused(
                f"an answer of {size / 1e6:.1f} MB exceeds the site's limit of "
                f"{self.max_message_mb:g} MB (policy.max_message_mb)"
            )


def _hours(text: str) -> tuple[clock_time, clock_time]:
    """From when to when, of ``20:00-06:00``; raises :class:`UserError` for another text."""
    try:
        start, end = (clock_time.fromisoformat(part) for part in text.split("-"))
    except ValueError:
        start = end = clock_time()
    # One with an offset from UTC cannot be compared with the local time.
    if start == end or start.tzinfo or end.tzinfo:
        raise UserError(
            "policy.hours must be two different times of a day, local ones without an offset, "
            f"such as 20:00-06:00, not {text!r}"
        )
    return start, end


def kind_of(instruction: Instruction) -> str:
    """What questions are counted together as :meth:`Policy.most_questions` bounds them."""
    if instruction.action in _IN_ROUNDS:
        return f"{instruction.action} {instruction.arm} {instruction.round}"
    return instruction.action
