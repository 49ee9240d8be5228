"""An ASGI application served on a thread of this process."""

from __future__ import annotations

import logging
import socket
import ssl
import threading
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any

import uvicorn

from fedshift import UserError

Receive = Callable[[], Awaitable[Mapping[str, Any]]]
Send = Callable[[Mapping[str, Any]], Awaitable[None]]
Application = Callable[[Mapping[str, Any], Receive, Send], Awaitable[None]]


class AsgiServer:
    """Listens from the moment it is made; serves as a context manager."""

    def __init__(
        self,
        application: Application,
        host: str,
        port: int,
        *,
        certificate: Path | None = None,
        key: Path | None = None,
    ) -> None:
        """Serves on ``host`` and ``port`` (0: a free one), by TLS where a ``certificate`` and its
        ``key`` in PEM are given. Raises :class:`UserError` when the port is taken, or the
        certificate cannot be used."""
        config = uvicorn.Config(
            application,
            ssl_certfile=None if certificate is None else str(certificate),
            ssl_keyfile=None if key is None else str(key),
            log_config=None,
            access_log=False,
            lifespan="off",
            ws="none",
            server_header=False,
            timeout_keep_alive=75,
        )
        for name in ("uvicorn", "asyncio"):
            logging.getLogger(name).setLevel(logging.ERROR)
        try:
            config.load()
        except (OSError, ssl.SSLError) as error:
            raise UserError(
                f"{certificate} and {key} cannot be used together ({error}); `fedshift server keys "
                "--renew` makes both anew"
            ) from error
        self._config = config
        self._socket = listening(host, port)
        self.port = int(self._socket.getsockname()[1])
        self._server = uvicorn.Server(config)
        self._thread = threading.Thread(
            target=self._server.run, args=([self._socket],), name="asgi", daemon=True
        )

    def __enter__(self) -> AsgiServer:
        self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._server.should_exit = True
        self._server.force_exit = True
        self._thread.join(10)
        self._socket.close()


def listening(host: str, port: int) -> socket.socket:
    """A socket that listens there; raises :class:`UserError` when it cannot."""
    try:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        return socket.create_server((host, port), family=family, backlog=2048)
    except OSError as error:
        raise UserError(
            f"cannot listen on {host}:{port} ({error.strerror}); is another server there? choose "
            "another port"
        ) from error
