"""What the grids of all engines have in common."""

from __future__ import annotations

import math
import time
from collections.abc import Iterable

from fedshift.protocol.flower import Grid, Message, RecordDict, Run, identify_server

_RUN_ID = 1
"""All that Flower needs to know of a run; ours has an identity of its own in its instructions."""


class RunGrid(Grid):
    """Serves one run, which this process coordinates without a SuperLink."""

    def __init__(self) -> None:
        identify_server(_RUN_ID)

    def set_run(self, run: Run) -> None:
        """Nothing to set: a grid serves one run."""

    @property
    def run(self) -> Run:
        """There is no SuperLink, hence no record of a run."""
        raise NotImplementedError("without a SuperLink there is no record of a Flower run")

    def create_message(
        self,
        content: RecordDict,
        message_type: str,
        dst_node_id: int,
        group_id: str,
        ttl: float | None = None,
    ) -> Message:
        """Build a message for one site."""
        return Message(
            content=content,
            message_type=message_type,
            dst_node_id=dst_node_id,
            group_id=group_id,
            ttl=ttl,
        )

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> Iterable[Message]:
        """Push and pull all, as Flower's own strategies do; after ``timeout`` seconds what is
        there is returned."""
        end = math.inf if timeout is None else time.monotonic() + timeout
        waiting = list(self.push_messages(messages))
        replies: list[Message] = []
        while waiting and time.monotonic() < end:
            for message_id in list(waiting):
                if found := list(self.pull_messages([message_id])):
                    waiting.remove(message_id)
                    replies.extend(found)
        return replies
