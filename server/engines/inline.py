"""The default engine: a Flower ``Grid`` over site workers in this process or a small pool.

No Ray, no SuperLink, no port. Messages are handed out in the order they are pushed and at most
two a worker are in flight, so memory does not grow with the federation.
"""

from __future__ import annotations

import math
import multiprocessing
import time
import uuid
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess

import torch

from fedshift.client.simulation import LocalSites, OpenSites
from fedshift.protocol.flower import (
    Error,
    Grid,
    Message,
    RecordDict,
    Run,
    identify_server,
    set_message_id,
    shallow_copy,
)

ERROR_DIED = 104
_RUN_ID = 1
_FIRST_NODE = 2
_LATE_IMPORT = "torch._dynamo"


class InlineGrid(Grid):
    """Node ``i`` is the ``i``-th site of ``sites``; use as a context manager."""

    def __init__(self, sites: LocalSites, slots: Sequence[str], threads: int) -> None:
        """``slots`` names the device of each worker; one CPU slot runs in this process.

        ``threads`` is the number of torch threads a worker uses. It is part of the arithmetic: a
        different number may change the last bits.
        """
        self.sites = sites
        self._names = sites.names  # made anew at every access
        identify_server(_RUN_ID)
        torch.set_num_threads(threads)
        self._pending: dict[str, Message] = {}
        self._pool = _Pool(sites, slots, threads) if len(slots) > 1 else None
        self._open = OpenSites(sites, torch.device(slots[0])) if len(slots) == 1 else None

    def __enter__(self) -> InlineGrid:
        return self

    def __exit__(self, *exception: object) -> None:
        if self._pool is not None:
            self._pool.close()

    def set_run(self, run: Run) -> None:
        """Nothing to set: the engine serves one run."""

    @property
    def run(self) -> Run:
        """There is no SuperLink, hence no record of a run."""
        raise NotImplementedError("the inline engine keeps no record of a Flower run")

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

    def get_node_ids(self) -> Iterable[int]:
        """One node a site."""
        return range(_FIRST_NODE, _FIRST_NODE + len(self._names))

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Queue ``messages``; nothing runs until a reply is pulled or a worker is free."""
        ids = []
        if self._pool is not None:
            self._pool.drop_expired()
        for message in messages:
            copy = shallow_copy(message)
            message_id = uuid.uuid4().hex
            for same in (message, copy):
                set_message_id(same, message_id)
            if self._pool is not None:
                self._pool.submit(message_id, self._site(copy), copy)
            else:
                self._pending[message_id] = copy
            ids.append(message_id)
        return ids

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """The replies that are ready; in process, the sites asked for run now."""
        replies = []
        for message_id in message_ids:
            if self._pool is not None:
                reply = self._pool.take(message_id)
            else:
                message = self._pending.pop(message_id, None)
                assert self._open is not None
                reply = None
                if message is not None and not _expired(message):
                    reply = self._open[self._site(message)].handle(message)
            if reply is not None:
                replies.append(reply)
        return replies

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
                found = list(self.pull_messages([message_id]))
                if found:
                    waiting.remove(message_id)
                    replies.extend(found)
        return replies

    def _site(self, message: Message) -> str:
        return self._names[message.metadata.dst_node_id - _FIRST_NODE]


@dataclass
class _Slot:
    device: str
    process: BaseProcess
    pipe: Connection
    message_id: str | None = None
    message: Message | None = None


class _Pool:
    """Worker processes, each with a pipe; one that dies costs its site's message, no more."""

    def __init__(self, sites: LocalSites, devices: Sequence[str], threads: int) -> None:
        # A fork server imports torch once and forks from there: quick, and CUDA is never
        # initialised before the fork. An optimiser's first use would import torch._dynamo in
        # every worker: a second and 100 MB each.
        self._context = multiprocessing.get_context("forkserver")
        self._context.set_forkserver_preload([__name__, _LATE_IMPORT])
        self._sites = sites
        self._threads = threads
        self._queue: deque[tuple[str, str, Message]] = deque()
        self._replies: dict[str, Message] = {}
        self._limit = 2 * len(devices)
        self._slots = [self._start(device) for device in devices]

    def _start(self, device: str) -> _Slot:
        ours, theirs = self._context.Pipe()
        process = self._context.Process(
            target=_serve, args=(theirs, self._sites, device, self._threads), daemon=True
        )
        process.start()
        theirs.close()
        return _Slot(device, process, ours)

    def drop_expired(self) -> None:
        """Forget what nobody waits for any more: a deadline passed."""
        self._queue = deque(entry for entry in self._queue if not _expired(entry[2]))
        self._replies = {key: reply for key, reply in self._replies.items() if not _expired(reply)}

    def _restart(self, slot: _Slot) -> None:
        """Put a new process in the place of a dead one."""
        slot.pipe.close()
        fresh = self._start(slot.device)
        slot.process, slot.pipe = fresh.process, fresh.pipe

    def submit(self, message_id: str, site: str, message: Message) -> None:
        self._queue.append((message_id, site, message))
        self._fill()

    def take(self, message_id: str) -> Message | None:
        """The reply to ``message_id``; waits a second for it when it is not there yet."""
        end = time.monotonic() + 1.0
        while message_id not in self._replies and (left := end - time.monotonic()) > 0:
            self._fill(needed=message_id)
            self._collect(left)
        reply = self._replies.pop(message_id, None)
        self._fill()
        return reply

    def _fill(self, needed: str | None = None) -> None:
        """Give work to idle workers, unless enough replies wait to be taken and none of the queue
        is ``needed`` now."""
        if len(self._replies) >= self._limit and all(key != needed for key, _, _ in self._queue):
            return
        for slot in self._slots:
            while slot.message_id is None and self._queue:
                message_id, site, message = self._queue.popleft()
                if _expired(message):
                    continue
                try:
                    slot.pipe.send((site, message))
                except OSError:  # It died idle, which costs no site anything.
                    self._restart(slot)
                    slot.pipe.send((site, message))
                slot.message_id, slot.message = message_id, message

    def _collect(self, timeout: float) -> None:
        busy = {slot.pipe: slot for slot in self._slots if slot.message_id is not None}
        for pipe in wait(list(busy), timeout=timeout):
            assert isinstance(pipe, Connection)
            slot = busy[pipe]
            assert slot.message_id is not None and slot.message is not None
            try:
                reply = pipe.recv()
            except (EOFError, OSError):
                slot.process.join()
                reason = f"the worker process ended with code {slot.process.exitcode}"
                reply = Message(Error(ERROR_DIED, reason), reply_to=slot.message)
                self._restart(slot)
            self._replies[slot.message_id] = reply
            slot.message_id = slot.message = None

    def close(self) -> None:
        for slot in self._slots:
            slot.pipe.close()
        for slot in self._slots:
            slot.process.join(timeout=5)
            if slot.process.is_alive():
                slot.process.terminate()


def _expired(message: Message) -> bool:
    """Whether the message's time to live, which a reply inherits, is over."""
    return time.time() > message.metadata.created_at + message.metadata.ttl


def _serve(pipe: Connection, sites: LocalSites, device: str, threads: int) -> None:
    """A worker process: answer messages until the pipe closes."""
    torch.set_num_threads(threads)
    open_sites = OpenSites(sites, torch.device(device))
    while True:
        try:
            site, message = pipe.recv()
        except (EOFError, KeyboardInterrupt):
            return
        pipe.send(open_sites[site].handle(message))
