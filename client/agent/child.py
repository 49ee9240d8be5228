"""The agent's child: holds the site's data, its networks and the GPU, and answers one message after
the other on a socket that it inherits. No coordinator is reached from here."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence

from fedshift.client.agent import frames
from fedshift.protocol.flower import Error, Message
from fedshift.protocol.parcel import Parcel, Wrapper, message_of, unwrap

ERROR_GARBAGE = 106
ERROR_CHILD = 104
_FOLLOW_S = 0.2


def serve(channel: socket.socket, handle: Callable[[Message], Message]) -> None:
    """Answer each message by ``handle`` until the parent closes the channel."""
    # A terminal interrupts the parent, too, which lets the message in work be finished.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_follow, args=(os.getppid(),), daemon=True).start()
    while (asked := frames.receive(channel)) is not None:
        try:
            reply = handle(unwrap(asked.head, asked.contents))
        except ValueError as error:
            reply = failed(asked, ERROR_GARBAGE, f"the request cannot be read: {error}")
        frames.send(channel, Wrapper().wrap(reply))


def _follow(parent: int) -> None:
    """End with the parent, however it ends: trained on alone, the site's state would be written by
    two."""
    while os.getppid() == parent:
        time.sleep(_FOLLOW_S)
    os._exit(1)


def failed(asked: Parcel, code: int, reason: str) -> Message:
    """The reply that says why there is none to what was ``asked``."""
    return Message(Error(code, reason), reply_to=message_of(asked.head))


class Child:
    """The parent's end: starts the process, and again when it has died."""

    def __init__(
        self, command: Sequence[str], environment: Mapping[str, str], inherited: Sequence[int] = ()
    ) -> None:
        """``command`` is given the number of the file descriptor of its socket as last argument. It
        inherits those ``inherited``, such as of a lock."""
        self._command = command
        self._inherited = inherited
        self._environment = environment
        self._process: subprocess.Popen[bytes] | None = None
        self._channel: socket.socket | None = None

    def answer(self, asked: Parcel) -> Parcel:
        """The child's reply; when it dies over it, one that says so."""
        for _ in range(2):
            channel = self._started()
            try:
                frames.send(channel, asked)
                break
            except OSError:  # It died idle, which costs no message anything.
                self._ended()
        try:
            reply = frames.receive(channel)
        except OSError:
            reply = None
        if reply is not None:
            return reply
        reason = f"the site's worker process ended with code {self._ended()}"
        return Wrapper().wrap(failed(asked, ERROR_CHILD, reason))

    def start(self) -> None:
        """Start the process before it is needed: importing torch takes seconds."""
        self._started()

    def _started(self) -> socket.socket:
        if self._channel is None:
            ours, theirs = socket.socketpair()
            with theirs:
                self._process = subprocess.Popen(
                    [*self._command, str(theirs.fileno())],
                    pass_fds=[theirs.fileno(), *self._inherited],
                    env=dict(self._environment),
                )
            self._channel = ours
        return self._channel

    def _ended(self) -> int | None:
        """Let go of a process that is no use; returns its exit code."""
        assert self._channel is not None and self._process is not None
        self._channel.close()
        self._channel = None
        try:
            return self._process.wait(5)
        except subprocess.TimeoutExpired:
            self._process.kill()
            return self._process.wait()

    def close(self) -> None:
        """End the process once it has answered."""
        if self._channel is not None:
            self._ended()


def python(*arguments: str) -> list[str]:
    """A command that runs a module of this installation."""
    return [sys.executable, "-m", *arguments]
