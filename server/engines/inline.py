"""The default engine: a Flower ``Grid`` over site workers in this process or a small pool.

No Ray, no SuperLink, no port. Messages are handed out in the order they are pushed and at most
two a worker are in flight, so memory does not grow with the federation.
"""

from __future__ import annotations

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
    Message,
    set_message_id,
    shallow_copy,
    with_error,
)
from fedshift.protocol.lock import Locks
from fedshift.server.engines.children import follow_parent
from fedshift.server.exchange import ERROR_LATE
from fedshift.server.grid import RunGrid

ERROR_DIED = 104
_FIRST_NODE = 2
_LATE_IMPORT = "torch._dynamo"


@dataclass(frozen=True)
class _Task:
    """A message to a site, and until when (by the monotonic clock) somebody waits for its reply."""

    id: str
    site: str
    message: Message
    until: float

    @property
    def expired(self) -> bool:
        return time.monotonic() > self.until

    def dropped(self) -> Message:
        """The answer to a message that was not handled, since its time was over."""
        return Message(_too_late(self.message), reply_to=self.message)


def _too_late(message: Message) -> Error:
    return Error(ERROR_LATE, f"no reply within its time to live ({message.metadata.ttl:g} s)")


class InlineGrid(RunGrid):
    """Node ``i`` is the ``i``-th site of ``sites``; use as a context manager."""

    def __init__(self, sites: LocalSites, slots: Sequence[str], threads: int) -> None:
        """``slots`` names the device of each worker; one CPU slot runs in this process.

        ``threads`` is the number of torch threads a worker uses. It is part of the arithmetic: a
        different number may change the last bits.
        """
        super().__init__()
        self.sites = sites
        self._names = sites.names  # made anew at every access
        torch.set_num_threads(threads)
        self._pending: dict[str, _Task] = {}
        self._pool = _Pool(sites, slots, threads) if len(slots) > 1 else None
        self._open = OpenSites(sites, torch.device(slots[0])) if len(slots) == 1 else None

    def __enter__(self) -> InlineGrid:
        return self

    def __exit__(self, *exception: object) -> None:
        if self._pool is not None:
            self._pool.close(at_once=any(exception))

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
            # Not from when it was made, which is wall-clock time: that may be set, and goes on
            # while the machine sleeps.
            until = time.monotonic() + message.metadata.ttl
            task = _Task(message_id, self._site(copy), copy, until)
            if self._pool is not None:
                self._pool.submit(task)
            else:
                self._pending[message_id] = task
            ids.append(message_id)
        return ids

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """The replies that are ready; in process, the sites asked for run now. What was dropped,
        since its time to live was over, is answered with an error."""
        replies = []
        for message_id in message_ids:
            if self._pool is not None:
                reply = self._pool.take(message_id)
            else:
                reply = self._run(self._pending.pop(message_id, None))
            if reply is not None:
                replies.append(reply)
        return replies

    def _run(self, task: _Task | None) -> Message | None:
        assert self._open is not None
        if task is None:
            return None
        return task.dropped() if task.expired else self._open[task.site].handle(task.message)

    def _site(self, message: Message) -> str:
        return self._names[message.metadata.dst_node_id - _FIRST_NODE]


@dataclass
class _Slot:
    device: str
    process: BaseProcess
    pipe: Connection
    task: _Task | None = None


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
        self._queue: deque[_Task] = deque()
        self._replies: dict[str, tuple[_Task, Message]] = {}
        self._late: dict[str, Message] = {}
        self._limit = 2 * len(devices)
        self._slots = [self._start(device) for device in devices]

    def _start(self, device: str) -> _Slot:
        ours, theirs = self._context.Pipe()
        process = self._context.Process(
            target=_serve, args=(theirs, self._sites, device, self._threads, Locks()), daemon=True
        )
        process.start()
        theirs.close()
        return _Slot(device, process, ours)

    def drop_expired(self) -> None:
        """Forget what nobody waits for any more: a deadline passed. Whoever asks for it all the
        same is told so."""
        for task in [task for task in self._queue if task.expired]:
            self._queue.remove(task)
            self._late[task.id] = task.dropped()
        for task, reply in [entry for entry in self._replies.values() if entry[0].expired]:
            del self._replies[task.id]
            self._late[task.id] = with_error(reply, _too_late(reply))

    def _restart(self, slot: _Slot) -> None:
        """Put a new process in the place of a dead one."""
        slot.pipe.close()
        fresh = self._start(slot.device)
        slot.process, slot.pipe = fresh.process, fresh.pipe

    def submit(self, task: _Task) -> None:
        self._queue.append(task)
        self._fill()

    def take(self, message_id: str) -> Message | None:
        """The reply to ``message_id``; waits a second for it when it is not there yet."""
        end = time.monotonic() + 1.0
        while not self._answered(message_id) and (left := end - time.monotonic()) > 0:
            self._fill(needed=message_id)
            if not self._answered(message_id):
                self._collect(left)
        if message_id in self._late:
            return self._late.pop(message_id)
        _, reply = self._replies.pop(message_id, (None, None))
        self._fill()
        return reply

    def _answered(self, message_id: str) -> bool:
        return message_id in self._replies or message_id in self._late

    def _fill(self, needed: str | None = None) -> None:
        """Give work to idle workers, unless enough replies wait to be taken and none of the queue
        is ``needed`` now."""
        if len(self._replies) >= self._limit and all(task.id != needed for task in self._queue):
            return
        for slot in self._slots:
            while slot.task is None and (task := self._next()) is not None:
                if task.expired:
                    self._late[task.id] = task.dropped()
                    continue
                try:
                    slot.pipe.send((task.site, task.message))
                except OSError:  # It died idle, which costs no site anything.
                    self._restart(slot)
                    slot.pipe.send((task.site, task.message))
                slot.task = task

    def _next(self) -> _Task | None:
        """The first message in the queue to a site that no worker serves: a site takes its messages
        one by one, in the order they were sent, as it notes in its ledger what leaves it."""
        served = {slot.task.site for slot in self._slots if slot.task is not None}
        for index, task in enumerate(self._queue):
            if task.site not in served:
                del self._queue[index]
                return task
        return None

    def _collect(self, timeout: float) -> None:
        busy = {slot.pipe: slot for slot in self._slots if slot.task is not None}
        for pipe in wait(list(busy), timeout=timeout):
            assert isinstance(pipe, Connection)
            slot = busy[pipe]
            task = slot.task
            assert task is not None
            try:
                reply = pipe.recv()
            except (EOFError, OSError):
                slot.process.join()
                reason = f"the worker process ended with code {slot.process.exitcode}"
                reply = Message(Error(ERROR_DIED, reason), reply_to=task.message)
                self._restart(slot)
            self._replies[task.id] = task, reply
            slot.task = None

    def close(self, *, at_once: bool) -> None:
        """End the workers, ``at_once`` in the middle of what they do."""
        for slot in self._slots:
            slot.pipe.close()
            if at_once:
                slot.process.terminate()
        for slot in self._slots:
            slot.process.join(timeout=5)
            if slot.process.is_alive():
                slot.process.kill()
                slot.process.join()


def _serve(pipe: Connection, sites: LocalSites, device: str, threads: int, locks: Locks) -> None:
    """A worker process: answer messages until the pipe closes."""
    follow_parent()
    torch.set_num_threads(threads)
    open_sites = OpenSites(sites, torch.device(device))
    while True:
        try:
            site, message = pipe.recv()
        except EOFError:
            return
        reply = open_sites[site].handle(message)
        try:
            pipe.send(reply)
        except OSError:  # The coordinator is gone.
            return
