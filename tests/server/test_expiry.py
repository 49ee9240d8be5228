"""Nothing expires without a deadline, whatever the clocks do, and what was dropped is answered."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from types import SimpleNamespace
from typing import Any

import pytest
from flwr.server.superlink.linkstate.utils import message_ttl_has_expired

from fedshift.protocol.flower import Error, Message, set_message_id
from fedshift.protocol.messages import Action, Instruction, answer, request
from fedshift.server import exchange as exchanging
from fedshift.server.engines import inline
from fedshift.server.exchange import exchange

HOUR = 3600.0


class Clock:
    """Both clocks, moved by hand; to wait for something moves them on."""

    def __init__(self) -> None:
        self.now, self.set_ahead = 1000.0, 1.7e9

    def monotonic(self) -> float:
        return self.now

    def time(self) -> float:
        return self.now + self.set_ahead

    def sleep(self, seconds: float) -> None:
        self.now += seconds


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """In the place of the clocks of the exchange and of the inline engine."""
    made = Clock()
    fake = SimpleNamespace(monotonic=made.monotonic, time=made.time, sleep=made.sleep)
    for module in (exchanging, inline):
        monkeypatch.setattr(module, "time", fake)
    return made


class Grid:
    """Sites that answer at once; before it does, ``meanwhile`` happens to the clock."""

    def __init__(self, clock: Clock, meanwhile: Callable[[], None]) -> None:
        self.clock, self.meanwhile = clock, meanwhile
        self.sent: dict[str, Message] = {}

    def push_messages(self, messages: Iterable[Message]) -> list[str]:
        for message in messages:
            set_message_id(message, str(len(self.sent)))
            self.sent[str(len(self.sent))] = message
        return list(self.sent)

    def pull_messages(self, ids: Iterable[str]) -> list[Message]:
        (message_id,) = ids
        self.meanwhile()
        reply = Message(answer("x"), reply_to=self.sent[message_id])
        reply.metadata.created_at = self.clock.time()
        return [reply]


def asked(*nodes: int) -> list[Message]:
    content = request(Instruction(action=Action.NAME, seed=0))
    return [Message(content, dst_node_id=node, message_type="train") for node in nodes]


def late(grid: Any, deadline_s: float | None, *nodes: int) -> list[bool]:
    return [reply.has_error() for reply in exchange(grid, asked(*nodes), deadline_s)]


def test_a_wall_clock_that_is_set_makes_no_site_late(clock: Clock) -> None:
    for leap in (30 * HOUR, -30 * HOUR):

        def set_it(leap: float = leap) -> None:
            clock.set_ahead += leap

        assert late(Grid(clock, set_it), 5.0, 1, 2) == [False, False]


def test_a_site_is_late_by_the_time_that_passed(clock: Clock) -> None:
    def work() -> None:
        clock.now += 3.0

    assert late(Grid(clock, work), 5.0, 1, 2) == [False, True]


def test_a_site_that_is_late_is_so_also_where_the_clock_was_set_back_before(clock: Clock) -> None:
    clock.set_ahead -= HOUR
    assert late(Grid(clock, lambda: clock.sleep(6.0)), 5.0, 1) == [True]


def test_a_reason_that_is_no_text_ends_nothing(clock: Clock) -> None:
    class Odd(Grid):
        def pull_messages(self, ids: Iterable[str]) -> list[Message]:
            return [Message(Error(5, 7), reply_to=self.sent[next(iter(ids))])]  # type: ignore[arg-type]

    (reply,) = exchange(Odd(clock, lambda: None), asked(1), None)  # type: ignore[arg-type]
    assert reply.error.reason == "7"


def test_flower_lets_such_a_message_live_too() -> None:
    """Ray's engine is Flower's own: it asks this of every message and of every reply."""
    sent = asked(1)
    grid = Grid(Clock(), lambda: None)
    list(exchange(grid, sent, None))  # type: ignore[arg-type]
    metadata = sent[0].metadata
    assert not message_ttl_has_expired(metadata, time.time() + 10 * 365 * 24 * HOUR)
    reply = Message(answer("x"), reply_to=sent[0])
    assert not message_ttl_has_expired(reply.metadata, time.time() + 10 * 365 * 24 * HOUR)


@pytest.fixture(params=[1, 2], ids=["in process", "pool"])
def grid(request: pytest.FixtureRequest, clock: Clock, pool: Callable[..., Any]) -> Any:
    return pool("a", "b", workers=request.param)


def test_no_message_expires_without_a_deadline(clock: Clock, grid: Any) -> None:
    """A round of twenty hours, and then one in which the machine slept for a week."""
    for leap, moved in (("now", 20 * HOUR), ("set_ahead", 7 * 24 * HOUR)):
        messages = asked(2, 3)
        replies = exchange(grid, messages, None)
        first = next(replies)
        setattr(clock, leap, getattr(clock, leap) + moved)
        assert [first.has_error(), *(reply.has_error() for reply in replies)] == [False, False]


@pytest.mark.parametrize("workers", [1, 2])
def test_what_was_dropped_is_answered(
    monkeypatch: pytest.MonkeyPatch, pool: Callable[..., Any], workers: int
) -> None:
    """Flower's own strategies push and pull: they too must not wait for ever."""
    grid = pool("a", "b", "c", "d", "e", "f", "g", workers=workers)
    messages = asked(*range(2, 9))
    for message in messages:
        message.metadata.ttl = 5.0
    ids = list(grid.push_messages(messages))
    moved = SimpleNamespace(monotonic=lambda: time.monotonic() + HOUR, time=time.time)
    with monkeypatch.context() as patch:
        patch.setattr(inline, "time", moved)
        pushed = list(grid.push_messages(asked(2)))  # A new round drops the old one.
        found = [list(grid.pull_messages([message_id])) for message_id in ids]
    reasons = [reply.error.reason for (reply,) in found if reply.has_error()]
    assert len(reasons) >= len(ids) - 2 * (workers > 1)  # Two may be in the making.
    assert set(reasons) == {"no reply within its time to live (5 s)"}
    assert [reply.metadata.src_node_id for (reply,) in found] == list(range(2, 9))
    end = time.monotonic() + 20
    while not list(grid.pull_messages(pushed)):
        assert time.monotonic() < end
