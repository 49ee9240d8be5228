"""The agent's parent: takes messages from the coordinator, has the child answer them, and brings
the replies back, through cuts of the network and restarts of either end.

Three threads: one asks for messages and fetches their objects, one has them answered in turn, one
says that the site is alive. What is finished lies in the outbox until the coordinator took it.
"""

from __future__ import annotations

import logging
import math
import queue
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Protocol

from fedshift import UserError
from fedshift.client.agent.child import ERROR_GARBAGE, failed
from fedshift.client.agent.connection import Connection, Denied, Unreachable
from fedshift.client.agent.frames import Outbox
from fedshift.protocol import parcel
from fedshift.protocol.fleet import Node
from fedshift.protocol.parcel import Parcel, Wrapper

log = logging.getLogger(__name__)

HEARTBEAT_S = 5.0
_FLOWER_HEARTBEAT_S = 30.0
"""What Flower's own server is told; it takes no interval below ten seconds."""
_POLL_S = 1.0
_FAREWELL_S = 20.0
_FIRST_PAUSE_S = 0.02
_LONGEST_PAUSE_S = 3.0
_KEPT = 4096
"""Bytes; smaller objects are not kept: they differ from message to message."""
_AHEAD = 2
"""Messages that are fetched while one is in work."""
_REPLIED = 256
_GONE = 410
_NOT_MINE = (401, 403, 409, 426)
"""With these a coordinator tells a site that it has no place there, or no more."""


class Worker(Protocol):
    """What answers a message, as :class:`fedshift.client.agent.child.Child` does."""

    def start(self) -> None:
        """Get ready."""

    def answer(self, asked: Parcel) -> Parcel:
        """The reply."""

    def close(self) -> None:
        """End."""


@dataclass
class Status:
    """What the agent tells of itself; times are seconds since the epoch. ``refused`` counts the
    requests that it did not fetch, as too large or damaged; what the policy refuses is answered and
    stands in the ledger."""

    state: str = "starting"
    node: int = 0
    contact: float | None = None
    problem: str = ""
    answered: int = 0
    refused: int = 0
    bytes_in: int = 0
    bytes_out: int = 0
    requests: int = 0
    working: str = ""


@dataclass
class Agent:
    """See the module. ``most_bytes``: the largest request that is fetched. ``tell`` is called when
    the status has changed."""

    connection: Connection
    public_key: bytes
    outbox: Outbox
    worker: Worker
    most_bytes: float = 1e9
    tell: Callable[[Status], None] = lambda status: None
    status: Status = field(default_factory=Status)

    def __post_init__(self) -> None:
        self._node = Node()
        self._draining = threading.Event()
        self._over = threading.Event()
        self._jobs: queue.Queue[Parcel | None] = queue.Queue(_AHEAD)
        self._taken: OrderedDict[str, None] = OrderedDict()
        self._kept: dict[str, bytes] = {}
        self._fatal: Exception | None = None
        self._give_up = math.inf

    def run(self) -> None:
        """Serve the coordinator until :meth:`drain`. Raises :class:`UserError` when the coordinator
        has no place for this site."""
        self.worker.start()
        try:
            self._activate()
        except Denied as denied:
            raise UserError(f"the coordinator turns this site away: {denied}") from denied
        except Unreachable:
            return
        threads = [
            threading.Thread(target=self._guarded, args=(loop,), name=name, daemon=True)
            for name, loop in (("poll", self._poll), ("beat", self._beat), ("work", self._work))
        ]
        for thread in threads:
            thread.start()
        self._draining.wait()
        with suppress(queue.Full):
            self._jobs.put_nowait(None)
        threads[-1].join()
        self._over.set()
        with suppress(Unreachable, Denied):
            self.connection.call("DeactivateNode", node_id=self._node.node_id)
        self.worker.close()
        self.connection.close()
        self._say(state="ended")
        if self._fatal is not None:
            raise self._fatal

    def drain(self) -> None:
        """Take no more messages; finish the one in work, and end. What a coordinator that cannot be
        reached does not take stays in the outbox."""
        self._give_up = time.monotonic() + _FAREWELL_S
        self._draining.set()
        self._say(state="draining")

    # Every call

    def _call(self, name: str, **fields: Any) -> Any:
        """Make a call until it gets through; raises :class:`Denied`. Gives up with
        :class:`Unreachable` only when the agent ends."""
        pause = _FIRST_PAUSE_S
        while True:
            try:
                response = self.connection.call(name, **fields)
                self._say(contact=time.time(), problem="", requests=self.status.requests + 1)
                return response
            except Unreachable as error:
                self._say(problem=str(error))
                log.info("%s: the coordinator cannot be reached: %s", name, error)
                if self._over.wait(pause) or time.monotonic() > self._give_up:
                    raise
                pause = min(2 * pause, _LONGEST_PAUSE_S)
            except Denied as denied:
                if denied.status != _GONE or name == "ActivateNode":
                    raise
                self._activate()

    def _activate(self) -> None:
        response = self._call(
            "ActivateNode", public_key=self.public_key, heartbeat_interval=_FLOWER_HEARTBEAT_S
        )
        self._node = Node(node_id=response.node_id)
        self._say(state="connected", node=response.node_id)
        log.info("connected as node %s", response.node_id)

    def _guarded(self, loop: Callable[[], None]) -> None:
        """Run a loop; when the coordinator turns the site away, or on a fault of ours, all end."""
        try:
            loop()
        except Unreachable:
            pass
        except Denied as denied:
            self._end(UserError(f"the coordinator turns this site away: {denied}"))
        except Exception as error:
            log.exception("the agent failed")
            self._end(error)

    def _end(self, error: Exception) -> None:
        self._fatal = self._fatal or error
        self._say(problem=str(error))
        self._over.set()
        self._draining.set()

    def _say(self, **changes: Any) -> None:
        for name, value in changes.items():
            setattr(self.status, name, value)
        self.tell(self.status)

    # The three loops

    def _beat(self) -> None:
        while not self._over.wait(HEARTBEAT_S):
            self._call("SendNodeHeartbeat", node=self._node, heartbeat_interval=_FLOWER_HEARTBEAT_S)

    def _poll(self) -> None:
        for asked, reply in self.outbox.replies().items():
            self._taken[asked] = None
            self._bring(asked, reply)
        while not self._draining.is_set():
            asked_at = time.monotonic()
            response = self._call("PullMessages", node=self._node)
            if not response.messages_list:
                # Our server waits for a message; Flower's own says at once that there is none.
                self._draining.wait(max(0.0, _POLL_S - (time.monotonic() - asked_at)))
                continue
            head, tree = response.messages_list[0], response.message_object_trees[0]
            if head.metadata.message_id in self._taken:
                continue
            job = self._fetch(head, tree)
            if job is not None:
                self._take(job)

    def _take(self, job: Parcel) -> None:
        self._taken[job.head.metadata.message_id] = None
        if len(self._taken) > _REPLIED:
            self._taken.popitem(last=False)
        self._jobs.put(job)

    def _fetch(self, head: Any, tree: Any) -> Parcel | None:
        """The message with its objects; of what the last one brought nothing is fetched again.
        None: the coordinator has it no more."""
        contents: dict[str, bytes] = {}
        size = 0
        try:
            for name in parcel.announced(head, tree):
                content = self._kept.get(name)
                if content is None:
                    response = self._call(
                        "PullObject",
                        node=self._node,
                        run_id=head.metadata.run_id,
                        object_id=name,
                    )
                    if not response.object_found:
                        return None
                    content = response.object_content
                    parcel.check_object(name, content)
                    self.status.bytes_in += len(content)
                contents[name] = content
                size += len(content)
                if size > self.most_bytes:
                    raise ValueError(
                        f"it holds more than {self.most_bytes / 1e6:g} MB (policy.max_message_mb)"
                    )
        except ValueError as error:
            self._say(refused=self.status.refused + 1)
            empty = Parcel(head, tree, {})
            self._bring(
                head.metadata.message_id,
                Wrapper().wrap(failed(empty, ERROR_GARBAGE, f"the request was refused: {error}")),
            )
            return None
        large = {name: content for name, content in contents.items() if len(content) >= _KEPT}
        self._kept = large or self._kept
        return Parcel(head, tree, contents)

    def _work(self) -> None:
        while (job := self._jobs.get()) is not None and not self._draining.is_set():
            asked = job.head.metadata.message_id
            self._say(working=job.head.metadata.message_type)
            reply = self.worker.answer(job)
            del job
            try:
                self.outbox.put(asked, reply)
            except OSError as error:
                # It is sent all the same; only a kill would cost the work.
                log.error("the outbox cannot be written (%s); free some space", error.strerror)
            self._bring(asked, reply)
            self._say(working="", answered=self.status.answered + 1)

    def _bring(self, asked: str, reply: Parcel) -> None:
        """Bring a reply to the coordinator, which has taken it when this returns, or does not want
        it any more."""
        head = reply.head
        response = self._call(
            "PushMessages",
            node=self._node,
            messages_list=[head],
            message_object_trees=[reply.tree],
            clientapp_runtime_list=[0.0],
        )
        wanted = set(response.objects_to_push)
        if response.results.get(head.metadata.message_id, 0):
            log.warning("the coordinator waits no longer for the reply to %s", asked)
        try:
            for name, content in reply.contents.items():
                if name in wanted:
                    self._call(
                        "PushObject",
                        node=self._node,
                        run_id=head.metadata.run_id,
                        object_id=name,
                        object_content=content,
                        session_id=response.session_id,
                    )
                    self.status.bytes_out += len(content)
        except Denied as denied:
            if denied.status in _NOT_MINE:
                raise
            log.warning("the coordinator refused the reply to %s: %s", asked, denied)
        self._call(
            "ConfirmMessageReceived",
            node=self._node,
            run_id=head.metadata.run_id,
            message_object_id=asked,
        )
        self.outbox.drop(asked)
