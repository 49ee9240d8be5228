"""The coordinator's own staff speak to a running server by a socket that its owner alone can open:
a line of JSON there, a line of JSON back."""

from __future__ import annotations

import json
import socket
import socketserver
import stat
import threading
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from fedshift import UserError

NAME = "control.sock"
_LARGEST = 4 * 2**20
"""Bytes of a line; a configuration has a few thousand."""
_PATIENCE_S = 30.0
_LONGEST_PATH = 100
"""Bytes of a socket's path that every system takes."""

Command = Callable[..., Any]


class NoServer(UserError):
    """No server runs with that state folder."""


class ControlServer:
    """Answers commands by their names; use as a context manager."""

    def __init__(self, state: Path, commands: Mapping[str, Command]) -> None:
        """Listens in the folder ``state``, which nobody else may be serving. A command is called
        with what was sent beside its name; what it returns, and the sentence of a
        :class:`UserError`, are the answer."""
        self._path = _path(state)
        self._path.unlink(missing_ok=True)  # Of a server that was killed.
        self._server = _Server(str(self._path), _Handler)
        self._path.chmod(stat.S_IRUSR | stat.S_IWUSR)
        self._server.commands = commands
        self._thread = threading.Thread(
            target=self._server.serve_forever, args=(0.1,), name="control", daemon=True
        )

    def __enter__(self) -> ControlServer:
        self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._path.unlink(missing_ok=True)


class _Server(socketserver.ThreadingUnixStreamServer):
    daemon_threads = True
    commands: Mapping[str, Command]


class _Handler(socketserver.StreamRequestHandler):
    timeout = _PATIENCE_S
    server: _Server

    def handle(self) -> None:
        line = self.rfile.readline(_LARGEST + 1)
        answer = self._answer(line) if line.endswith(b"\n") else {"error": "the line is too long"}
        with suppress(OSError):  # Who asked may be gone.
            self.wfile.write(json.dumps(answer).encode() + b"\n")

    def _answer(self, line: bytes) -> dict[str, Any]:
        try:
            request = json.loads(line)
            command = self.server.commands[request.pop("command")]
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
            return {"error": "the server knows no such command: run the same fedshift on both"}
        try:
            return {"answer": command(**request)}
        except UserError as error:
            return {"error": str(error)}


def ask(state: Path, command: str, **fields: Any) -> Any:
    """Have the server of ``state`` carry out ``command``; returns its answer.

    Raises :class:`UserError` with the sentence in which it refuses, and :class:`NoServer` when none
    runs there.
    """
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as channel:
        channel.settimeout(_PATIENCE_S)
        try:
            channel.connect(str(_path(state)))
        except (FileNotFoundError, ConnectionRefusedError) as error:
            raise NoServer(
                f"no server runs with --state {state}; `fedshift server --state {state}` starts one"
            ) from error
        channel.sendall(json.dumps({"command": command, **fields}).encode() + b"\n")
        with channel.makefile("rb") as file:
            line = file.readline()
    if not line:
        raise UserError("the server ended before it answered; see its log")
    answer = json.loads(line)
    if "error" in answer:
        raise UserError(answer["error"])
    return answer["answer"]


def _path(state: Path) -> Path:
    path = state / NAME
    if len(str(path).encode()) > _LONGEST_PATH:
        raise UserError(
            f"the path {path} is longer than a socket's may be ({_LONGEST_PATH} bytes); choose a "
            "shorter --state DIR"
        )
    return path
