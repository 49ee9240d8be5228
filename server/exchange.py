"""Sending messages and taking the replies one at a time, in the order of the messages."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence

from fedshift.protocol.answers import clean
from fedshift.protocol.flower import Error, Grid, Message, correct_source, with_error

ERROR_LATE = 103
NO_EXPIRY_S = 100 * 365.25 * 24 * 3600.0
"""The time to live of a message without a deadline. Flower's own default is twelve hours, and it
drops what is older without a word."""
_POLL_S = 0.05


def exchange(
    grid: Grid,
    messages: Sequence[Message],
    deadline_s: float | None,
    *,
    priority: Callable[[Message], float] = lambda _: 0.0,
) -> Iterator[Message]:
    """Yield one reply a message; a site that had not answered after ``deadline_s`` yields an error.

    Waiting goes by the monotonic clock, so that a laptop that slept and a clock that was set make
    no site late. The order is that of ``messages``, whichever site is ready first, so that sums
    have the same bits for any number of workers; only one reply is held at a time. What has a
    higher ``priority`` is sent earlier.
    """
    for message in messages:
        message.metadata.ttl = NO_EXPIRY_S if deadline_s is None else deadline_s
    began = _Moment()
    sent = sorted(messages, key=priority, reverse=True)
    ids = dict(zip(map(id, sent), grid.push_messages(sent), strict=True))
    for message in messages:
        reply = _wait(grid, ids[id(message)], began, deadline_s)
        # A reply counts by when it was made: waiting for a late site makes no other one late.
        if reply is None or (
            deadline_s is not None and began.until(reply.metadata.created_at) > deadline_s
        ):
            reason = f"no reply within {deadline_s:g} s (deadline_s)"
            reply = Message(Error(ERROR_LATE, reason), reply_to=message)
        correct_source(reply, message.metadata.dst_node_id)
        if reply.has_error():
            error = Error(reply.error.code, clean(str(reply.error.reason or "no reason given")))
            reply = with_error(reply, error)
        yield reply


class _Moment:
    """Now, by both clocks: by the monotonic one, and by the wall clock that replies are dated in,
    which may be set and goes on while the machine sleeps."""

    def __init__(self) -> None:
        self._monotonic, self._wall = time.monotonic(), time.time()

    def passed(self) -> float:
        """Seconds since then."""
        return time.monotonic() - self._monotonic

    def until(self, dated: float) -> float:
        """Seconds from then to the wall-clock time ``dated``, at least: by how far the wall clock
        has leapt ahead meanwhile, nobody is late."""
        leap = (time.time() - self._wall) - self.passed()
        return dated - self._wall - max(0.0, leap)


def _wait(grid: Grid, message_id: str, began: _Moment, deadline_s: float | None) -> Message | None:
    while True:
        for reply in grid.pull_messages([message_id]):
            return reply
        if deadline_s is not None and began.passed() > deadline_s:
            return None
        time.sleep(_POLL_S)
