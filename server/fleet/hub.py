"""What waits for whom between the coordinator and the sites: messages, their objects, replies.

Everything is in memory and nothing is trusted that a site says: a reply belongs to a message that
was sent to that very site and is still waited for, its objects are those that it announced, and
their bytes are bounded. A coordinator that is killed has lost nothing that the round's checkpoint
and the sites' own state do not bring back.

A message is handed out once, and again when its site says that it started anew, or asks for work
without having fetched any of it: the answer that carried it was lost.
"""

from __future__ import annotations

import threading
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

from fedshift.protocol import parcel
from fedshift.protocol.fleet import MessageHead, ObjectTree
from fedshift.protocol.flower import Message
from fedshift.protocol.nodes import node_id
from fedshift.protocol.parcel import Parcel

_REMEMBERED = 10_000
"""How many messages that nobody waits for any more are told from those that never were."""


class Refusal(Exception):
    """What a site sent is not taken; the text says why, in words for its staff and the log."""


@dataclass
class Peer:
    """An enrolled site as the coordinator sees it. Times are seconds of the monotonic clock."""

    id: int
    name: str
    key: bytes
    contact: float | None = None
    version: str = ""
    instance: str = ""
    left: bool = False
    polls: int = 0
    bytes_in: int = 0
    bytes_out: int = 0
    refused: int = 0
    queue: deque[str] = field(default_factory=deque)


@dataclass
class _Reply:
    head: MessageHead
    missing: set[str]
    contents: dict[str, bytes] = field(default_factory=dict)
    size: int = 0
    arrived: float | None = None
    fault: str | None = None


@dataclass
class _Sent:
    peer: int
    head: MessageHead
    tree: ObjectTree
    objects: tuple[str, ...]
    until: float
    handed: bool = False
    fetched: bool = False
    reply: _Reply | None = None


@dataclass(frozen=True)
class Outcome:
    """What became of a message: the reply and when it had arrived whole (monotonic), or why there
    is none."""

    reply: Message | None
    arrived: float
    fault: str = ""


class Hub:
    """Holds the messages between a coordinator's runs and the enrolled sites; thread-safe."""

    def __init__(
        self,
        *,
        lease_s: float = 15.0,
        most_bytes: float = 1e9,
        clock: Callable[[], float] = time.monotonic,
        tell: Callable[[str, str], None] = lambda site, what: None,
    ) -> None:
        """A site that has not been heard of for ``lease_s`` is away. A reply holds at most
        ``most_bytes``. ``tell`` is given a site's name and what of it was refused."""
        self.lease_s = lease_s
        self.most_bytes = most_bytes
        self.now = clock
        self._tell = tell
        self._began = clock()
        self._changed = threading.Condition()
        self._peers: dict[int, Peer] = {}
        self._sent: dict[str, _Sent] = {}
        self._gone: OrderedDict[str, None] = OrderedDict()
        self._objects: dict[str, bytes] = {}
        self._holders: dict[str, int] = {}
        self._closed = False

    # Who takes part

    def enrol(self, name: str, key: bytes, node: int | None = None) -> int:
        """Let the site with the public ``key`` take part as ``name``; returns its node's id.

        Give ``node`` for a site that has one from an earlier key: its new key takes that one's
        place, and what the site was asked stays asked.
        """
        node = node_id(key) if node is None else node
        with self._changed:
            known = self._peers.get(node)
            if known is None or known.name != name:
                self._peers[node] = Peer(node, name, key)
            elif known.key != key:
                # Whoever waits with the old key waits in vain.
                known.key, known.instance, known.polls = key, "", known.polls + 1
                self._changed.notify_all()
            return node

    def revoke(self, node: int) -> None:
        """Let the site with that node id take part no more: what it was asked is answered with
        that."""
        with self._changed:
            self._peers.pop(node, None)
            for sent in self._sent.values():
                if sent.peer == node and (sent.reply is None or sent.reply.arrived is None):
                    self._answer(sent, _Reply(sent.head, set(), fault="its key was revoked"))
            self._changed.notify_all()

    def peer(self, key: bytes) -> Peer | None:
        """The site with the public ``key``, if it is enrolled."""
        return next((peer for peer in list(self._peers.values()) if peer.key == key), None)

    @property
    def peers(self) -> list[Peer]:
        """The enrolled sites, by name."""
        with self._changed:
            return sorted(self._peers.values(), key=lambda peer: peer.name)

    def here(self, peer: Peer) -> bool:
        """Whether the site was heard of within the lease; one that was not yet counts as heard of
        when the coordinator began, since a restart must not drop it."""
        if peer.left:
            return False
        heard = self._began if peer.contact is None else peer.contact
        return self.now() - heard <= self.lease_s

    def met(self, peer: Peer) -> bool:
        """Whether the site has been in contact, and is here."""
        return peer.contact is not None and self.here(peer)

    # What a site calls

    def heard(self, peer: Peer, received: int) -> None:
        """The site made a request of ``received`` bytes."""
        with self._changed:
            peer.contact = self.now()
            peer.bytes_in += received

    def activate(self, peer: Peer, instance: str = "") -> None:
        """The site starts anew: it is handed again what it has not answered. Only this
        ``instance`` of its agent is served from now on."""
        with self._changed:
            peer.left = False
            peer.instance = instance
            peer.polls += 1  # Nobody may be listening where an earlier process of it asked.
            peer.queue.clear()
            for name, sent in self._sent.items():
                if sent.peer == peer.id and (sent.reply is None or sent.reply.arrived is None):
                    sent.handed = sent.fetched = False
                    peer.queue.append(name)
            self._changed.notify_all()

    def deactivate(self, peer: Peer) -> None:
        """The site ends, and says so."""
        with self._changed:
            peer.left = True
            peer.polls += 1
            self._changed.notify_all()

    def take(self, peer: Peer, wait_s: float) -> tuple[MessageHead, ObjectTree] | None:
        """The next message for the site, waiting up to ``wait_s`` for one; None: there is none, or
        the site asked once more meanwhile, so that nobody may be listening here any more."""
        with self._changed:
            peer.polls += 1
            mine = peer.polls
            for name, sent in self._sent.items():
                if sent.peer == peer.id and sent.handed and not sent.fetched and not sent.reply:
                    sent.handed = False
                    peer.queue.append(name)
            self._changed.notify_all()
            end = self.now() + wait_s
            while peer.polls == mine and not self._closed and self._peers.get(peer.id) is peer:
                while peer.queue:
                    found = self._sent.get(peer.queue.popleft())
                    if found is not None and not found.handed and self.now() <= found.until:
                        found.handed = True
                        return found.head, found.tree
                left = end - self.now()
                if left <= 0:
                    break
                self._changed.wait(left)
            return None

    def content(self, peer: Peer, name: str) -> bytes | None:
        """The object ``name`` of a message to the site; None: no message to it has it."""
        with self._changed:
            mine = [s for s in self._sent.values() if s.peer == peer.id and name in s.objects]
            for sent in mine:
                sent.fetched = True
            found = self._objects.get(name) if mine else None
            peer.bytes_out += len(found or b"")
            return found

    def announce(self, peer: Peer, head: MessageHead, tree: ObjectTree) -> list[str]:
        """The site has a reply: returns the ids of the objects that it is to send, none when all
        are there. Raises :class:`Refusal` for a reply that is not waited for."""
        asked = head.metadata.reply_to_message_id
        name = head.metadata.message_id
        with self._noting(peer), self._changed:
            sent = self._sent.get(asked)
            if sent is None or sent.peer != peer.id or self.now() > sent.until:
                late = asked in self._gone if sent is None else sent.peer == peer.id
                raise Refusal(
                    "its reply came when nobody waited for it any more"
                    if late
                    else "its reply is to no message of this coordinator"
                )
            if sent.reply is not None and sent.reply.head.metadata.message_id == name:
                return sorted(sent.reply.missing)
            if sent.reply is not None and sent.reply.arrived is not None:
                raise Refusal("it replied once more to what it had answered")
            try:
                objects = parcel.announced(head, tree)
            except ValueError as error:
                self._answer(sent, _Reply(head, set(), fault=f"its reply was refused: {error}"))
                raise Refusal(f"its reply was refused: {error}") from error
            sent.reply = _Reply(head, set(objects))
            return objects

    def put(self, peer: Peer, name: str, content: bytes) -> bool:
        """An object of a reply of the site; False: it announced none of that name. Raises
        :class:`Refusal` for one that is not what it should be."""
        with self._changed:
            open_replies = [
                sent
                for sent in self._sent.values()
                if sent.peer == peer.id and sent.reply is not None and name in sent.reply.missing
            ]
        if not open_replies:
            return False
        fault = None
        try:
            parcel.check_object(name, content)
        except ValueError as error:
            fault = f"its reply was refused: {error}"
        with self._noting(peer), self._changed:
            for sent in open_replies:
                reply = sent.reply
                if reply is None or name not in reply.missing:
                    continue
                reply.size += len(content)
                if reply.size > self.most_bytes:
                    fault = (
                        f"its reply holds more than {self.most_bytes / 1e6:g} MB, the most that "
                        "this coordinator takes (--max-message-mb)"
                    )
                if fault is None:
                    reply.missing.discard(name)
                    reply.contents[name] = content
                if fault is not None or not reply.missing:
                    reply.fault = fault
                    self._answer(sent, reply)
            if fault is not None:
                raise Refusal(fault)
        return True

    def _answer(self, sent: _Sent, reply: _Reply) -> None:
        if reply.fault is not None:
            reply.contents.clear()
            reply.missing.clear()
        reply.arrived = self.now()
        sent.reply = reply
        self._changed.notify_all()

    @contextmanager
    def _noting(self, peer: Peer) -> Iterator[None]:
        """Count and tell what is refused."""
        try:
            yield
        except Refusal as refusal:
            peer.refused += 1
            self._tell(peer.name, str(refusal))
            raise

    # What the coordinator calls

    def send(self, parcels: Sequence[tuple[Parcel, int]], until: float) -> list[str]:
        """Hold each message for the site with that node id until then (monotonic); returns their
        ids. Objects that several share stand in the first."""
        with self._changed:
            for name in [name for name, sent in self._sent.items() if self._late(sent)]:
                self._forget(name)
            for packed, _ in parcels:
                self._objects.update(packed.contents)
            for packed, peer in parcels:
                sent = _Sent(peer, packed.head, packed.tree, tuple(parcel.ids(packed.tree)), until)
                for each in sent.objects:
                    self._holders[each] = self._holders.get(each, 0) + 1
                name = packed.head.metadata.message_id
                self._sent[name] = sent
                if (found := self._peers.get(peer)) is None:
                    self._answer(sent, _Reply(packed.head, set(), fault="it is not enrolled"))
                else:
                    found.queue.append(name)
            self._changed.notify_all()
        return [packed.head.metadata.message_id for packed, _ in parcels]

    def receive(self, name: str, wait_s: float) -> Outcome | None:
        """What became of a message, which is then forgotten; None: nothing, within ``wait_s``.

        A site that is away is waited for as long as a deadline runs, and else given up.
        """
        with self._changed:
            end = self.now() + wait_s
            while (outcome := self._outcome(name)) is None:
                left = end - self.now()
                if left <= 0:
                    return None
                self._changed.wait(left)
            self._forget(name)
        if outcome.fault:
            return Outcome(None, outcome.arrived or 0.0, outcome.fault)
        try:
            return Outcome(parcel.unwrap(outcome.head, outcome.contents), outcome.arrived or 0.0)
        except ValueError as error:
            fault = f"its reply was refused: {error}"
            if peer := self._peers.get(outcome.head.metadata.src_node_id):
                peer.refused += 1
                self._tell(peer.name, fault)
            return Outcome(None, outcome.arrived or 0.0, fault)

    def _late(self, sent: _Sent) -> bool:
        """Whether no reply can count any more; one that arrived in time may still be fetched."""
        arrived = None if sent.reply is None else sent.reply.arrived
        return self.now() > sent.until and (arrived is None or arrived > sent.until)

    def _outcome(self, name: str) -> _Reply | None:
        sent = self._sent.get(name)
        if sent is None or self._late(sent):
            return _Reply(MessageHead(), set(), fault="it sent no reply in time")
        if sent.reply is not None and sent.reply.arrived is not None:
            return sent.reply
        peer = self._peers.get(sent.peer)
        if sent.until == float("inf") and (peer is None or not self.here(peer)):
            gone = "it ended" if peer is not None and peer.left else None
            why = gone or f"it has not been heard of for {self.lease_s:g} s (--lease-s)"
            return _Reply(sent.head, set(), fault=why)
        return None

    def _forget(self, name: str) -> None:
        sent = self._sent.pop(name, None)
        if sent is None:
            return
        self._gone[name] = None
        if len(self._gone) > _REMEMBERED:
            self._gone.popitem(last=False)
        for each in sent.objects:
            self._holders[each] -= 1
            if not self._holders[each]:
                del self._holders[each]
                self._objects.pop(each, None)

    def withdraw(self, names: list[str]) -> None:
        """Wait for these no longer: a reply to one is late."""
        with self._changed:
            for name in names:
                self._forget(name)

    def holds(self, name: str) -> bool:
        """Whether a reply to that message may still count."""
        with self._changed:
            return name in self._sent

    def awaited(self, names: Iterable[str] | None = None) -> dict[str, int]:
        """How many messages, or of those ``names``, each site has not answered yet, by its name."""
        with self._changed:
            found: dict[str, int] = {}
            for name in list(self._sent) if names is None else names:
                sent = self._sent.get(name)
                if sent is None or (sent.reply is not None and sent.reply.arrived is not None):
                    continue
                if (peer := self._peers.get(sent.peer)) is not None:
                    found[peer.name] = found.get(peer.name, 0) + 1
            return found

    def close(self) -> None:
        """Let everybody who waits go."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
