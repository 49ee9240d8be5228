"""Sending messages and taking the replies one at a time, in the order of the messages."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence

from fedshift.protocol.flower import Error, Grid, Message, correct_source

ERROR_LATE = 103
_POLL_S = 0.05


def exchange(
    grid: Grid,
    messages: Sequence[Message],
    deadline_s: float | None,
    *,
    priority: Callable[[Message], float] = lambda _: 0.0,
) -> Iterator[Message]:
    """Yield one reply a message; a site that had not answered after ``deadline_s`` yields an error.

    The order is that of ``messages``, whichever site is ready first, so that sums have the same
    bits for any number of workers; only one reply is held at a time. What has a higher
    ``priority`` is sent earlier.
    """
    end = None if deadline_s is None else time.time() + deadline_s
    if deadline_s is not None:
        for message in messages:
            message.metadata.ttl = deadline_s
    sent = sorted(messages, key=priority, reverse=True)
    ids = dict(zip(map(id, sent), grid.push_messages(sent), strict=True))
    for message in messages:
        reply = _wait(grid, ids[id(message)], end)
        # A reply counts by when it was made: waiting for a late site makes no other one late.
        if reply is None or (end is not None and reply.metadata.created_at > end):
            reason = f"no reply within {deadline_s:g} s (deadline_s)"
            reply = Message(Error(ERROR_LATE, reason), reply_to=message)
        correct_source(reply, message.metadata.dst_node_id)
        yield reply


def _wait(grid: Grid, message_id: str, end: float | None) -> Message | None:
    while True:
        for reply in grid.pull_messages([message_id]):
            return reply
        if end is not None and time.time() > end:
            return None
        time.sleep(_POLL_S)
