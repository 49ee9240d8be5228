"""Worker processes that serve one task after another, so that torch is imported once.

The coordinator of every run packed onto the machine is in a worker of its own. A worker that dies
costs its task, no more, and all of them end with the process that started them, however it ends.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Any, Generic, Literal, Protocol, TypeVar

from fedshift import UserError
from fedshift.protocol.lock import Locks
from fedshift.server.engines.children import follow_parent
from fedshift.server.engines.devices import device_names

# What a worker imports before its first task; an optimiser's first use would import the last.
_PRELOADED = ["fedshift.runs.cells", "torch._dynamo"]


class Task(Protocol):
    """Something to do in a worker; it travels there by pickle."""

    def __call__(self, device: str, tell: Callable[[float, str], None]) -> None:
        """Do it on ``device``; ``tell`` which share of it is done, from 0 to 1, and what is on."""


T = TypeVar("T", bound=Task)


@dataclass(frozen=True)
class Event(Generic[T]):
    """What became of ``task``: it began, went on, is done, or failed.

    ``text`` says what is on, or the reason of the failure in one sentence; ``trace`` is where an
    unexpected one came from.
    """

    task: T
    kind: Literal["began", "progress", "done", "failed"]
    share: float = 0.0
    text: str = ""
    trace: str = ""


def places(devices: str, workers: int | None, threads: int, tasks: int) -> list[str]:
    """The device of each worker: as many as there are cores for ``threads`` threads each, or one a
    GPU, unless ``workers`` says how many; never more than ``tasks``.

    Raises :class:`UserError` for a device that this machine lacks.
    """
    names = device_names(devices)
    cores = max(1, len(os.sched_getaffinity(0)) // threads)
    count = workers or (cores if names == ["cpu"] else len(names))
    return [names[number % len(names)] for number in range(min(count, max(1, tasks)))]


@dataclass
class _Worker:
    device: str
    process: BaseProcess
    pipe: Connection
    task: Any = None


class Pool:
    """Workers on the ``devices`` of :func:`places`; use as a context manager.

    They are started when there is something to do. Leaving the context stops them, in the middle
    of their tasks if need be.
    """

    def __init__(self, devices: Sequence[str]) -> None:
        # A fork server imports torch once for all workers, and forks before CUDA is initialised.
        self._context = multiprocessing.get_context("forkserver")
        self._context.set_forkserver_preload(_PRELOADED)
        self._devices = list(devices)
        self._workers: list[_Worker] = []

    def __enter__(self) -> Pool:
        self._workers = [self._start(device) for device in self._devices]
        return self

    def __exit__(self, *_: object) -> None:
        for worker in self._workers:
            worker.process.terminate()
        for worker in self._workers:
            worker.process.join()
            worker.pipe.close()

    def run(self, pick: Callable[[], T | None]) -> Iterator[Event[T]]:
        """Give what ``pick`` returns to idle workers until it returns None and all is done; yield
        what happens."""
        while True:
            for worker in self._workers:
                if worker.task is None and (task := pick()) is not None:
                    self._give(worker, task)
                    yield Event(task, "began")
            busy = {worker.pipe: worker for worker in self._workers if worker.task is not None}
            if not busy:
                return
            for pipe in wait(list(busy)):
                assert isinstance(pipe, Connection)
                worker = busy[pipe]
                event = self._event(worker)
                if event.kind in ("done", "failed"):
                    worker.task = None
                yield event

    def _start(self, device: str) -> _Worker:
        ours, theirs = self._context.Pipe()
        process = self._context.Process(target=_serve, args=(theirs, device, Locks()), daemon=True)
        process.start()
        theirs.close()
        return _Worker(device, process, ours)

    def _restart(self, worker: _Worker) -> None:
        worker.pipe.close()
        fresh = self._start(worker.device)
        worker.process, worker.pipe = fresh.process, fresh.pipe

    def _give(self, worker: _Worker, task: Task) -> None:
        try:
            worker.pipe.send(task)
        except OSError:  # It died idle, which costs no task.
            self._restart(worker)
            worker.pipe.send(task)
        worker.task = task

    def _event(self, worker: _Worker) -> Event[Any]:
        """What a busy worker says of its task, or that it died of it."""
        task = worker.task
        try:
            return Event(task, *worker.pipe.recv())
        except (EOFError, OSError):
            worker.process.join()
        code = worker.process.exitcode
        why = " (killed; was the memory full?)" if code == -signal.SIGKILL else ""
        self._restart(worker)
        return Event(task, "failed", text=f"the worker process ended with code {code}{why}")


def _serve(pipe: Connection, device: str, locks: Locks) -> None:
    """A worker process: do tasks until it is stopped or the one who started it is gone."""
    follow_parent()
    while True:
        try:
            task: Task = pipe.recv()
        except EOFError:
            return
        try:
            task(device, lambda share, text: pipe.send(("progress", share, text, "")))
        except UserError as error:
            pipe.send(("failed", 0.0, str(error), ""))
        except Exception as error:
            # Whatever it is, it is this task's end and not the others'.
            reason = f"{type(error).__name__}: {error}".splitlines()[0]
            pipe.send(("failed", 0.0, reason, traceback.format_exc()))
        else:
            pipe.send(("done", 1.0, "", ""))
