"""Flower's ``Grid`` over the sites that a hub is in contact with: one a run."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Iterable, Mapping

from fedshift.protocol.flower import Error, Message, correct_source
from fedshift.protocol.parcel import Wrapper
from fedshift.server.exchange import NO_EXPIRY_S
from fedshift.server.fleet.hub import Hub
from fedshift.server.grid import RunGrid

ERROR_AWAY = 105
_WAIT_S = 1.0


class Stopped(BaseException):
    """The run is to end where it stands. As with an interrupt, nobody takes it for a fault."""


class FleetGrid(RunGrid):
    """Node ``i`` is the enrolled site whose key has that id; use as a context manager."""

    def __init__(self, hub: Hub) -> None:
        super().__init__()
        self._hub = hub
        self._asked: dict[str, Message] = {}
        self._stopped = threading.Event()

    def __enter__(self) -> FleetGrid:
        return self

    def __exit__(self, *exception: object) -> None:
        self._hub.withdraw(list(self._asked))

    def stop(self) -> None:
        """Have the run end: whatever it asks of this grid from now on raises :class:`Stopped`."""
        self._stopped.set()

    def pause(self, seconds: float) -> None:
        """Wait so long; raises :class:`Stopped` as soon as the run is to end."""
        self._stopped.wait(seconds)
        self._check()

    def _check(self) -> None:
        if self._stopped.is_set():
            raise Stopped

    @property
    def awaited(self) -> list[str]:
        """The sites, by name, that have not answered yet."""
        return sorted(self._hub.awaited(list(self._asked)))

    @property
    def enrolled(self) -> Mapping[int, str]:
        """The name under which each node's key was enrolled."""
        return {peer.id: peer.name for peer in self._hub.peers}

    def get_node_ids(self) -> Iterable[int]:
        """The sites that are in contact now."""
        self._check()
        return [peer.id for peer in self._hub.peers if self._hub.met(peer)]

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Hold ``messages`` for their sites, each record packed once."""
        self._check()
        messages = list(messages)
        wrapper, known, until = Wrapper(), dict[str, bytes](), math.inf
        parcels = []
        for message in messages:
            if message.metadata.ttl < NO_EXPIRY_S:
                until = self._hub.now() + message.metadata.ttl
                # A site's clock must not decide whether its reply is late.
                message.metadata.ttl = NO_EXPIRY_S
            packed = wrapper.wrap(message, known)
            known.update(packed.contents)
            parcels.append((packed, message.metadata.dst_node_id))
        ids = self._hub.send(parcels, until)
        # Nobody comes back for what was late.
        self._asked = {name: asked for name, asked in self._asked.items() if self._hub.holds(name)}
        self._asked.update(zip(ids, messages, strict=True))
        return ids

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """The replies that are there, each dated when it had arrived whole by this machine's
        clock; an error in the place of one that cannot come or cannot be read."""
        replies = []
        for name in message_ids:
            self._check()
            outcome = self._hub.receive(name, _WAIT_S)
            if outcome is None:
                continue
            asked = self._asked.pop(name, None)
            reply = outcome.reply
            if reply is None and asked is not None:
                reply = Message(Error(ERROR_AWAY, outcome.fault), reply_to=asked)
            if reply is not None and asked is not None:
                ago = self._hub.now() - outcome.arrived if outcome.arrived else 0.0
                reply.metadata.__dict__["_created_at"] = time.time() - ago
                correct_source(reply, asked.metadata.dst_node_id)
                replies.append(reply)
        return replies
