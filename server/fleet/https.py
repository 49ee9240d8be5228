"""The Fleet API over HTTPS: an ASGI application that serves its paths and no other."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from fedshift.protocol.fleet import CALLS, MEDIA_TYPE
from fedshift.server.fleet.asgi import AsgiServer, Receive, Send
from fedshift.server.fleet.service import LARGEST_REQUEST, Denied, Fleet

_BODY_S = 120.0
"""An object of a few MiB takes no longer on the slowest line that is of use."""
_THREADS = 1024
_PATHS = {call.path: call.name for call in CALLS.values()}


class _Application:
    def __init__(self, fleet: Fleet) -> None:
        self._fleet = fleet
        # Each waiting site occupies a thread; threads are made as they are needed.
        self._threads = ThreadPoolExecutor(_THREADS, "fleet")

    async def __call__(self, scope: Mapping[str, Any], receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        try:
            status, body, media = 200, await self._answer(scope, receive), MEDIA_TYPE
        except Denied as denied:
            status, body, media = denied.status, denied.to_json().encode(), "application/json"
        except (TimeoutError, ConnectionError):
            status, body, media = 408, b"", "application/json"
        except asyncio.CancelledError:  # The server ends.
            return
        headers = [
            (b"content-type", media.encode()),
            (b"content-length", str(len(body)).encode()),
        ]
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": body})

    async def _answer(self, scope: Mapping[str, Any], receive: Receive) -> bytes:
        name = _PATHS.get(scope["path"])
        if name is None:
            raise Denied(404, "there is nothing here")
        if scope["method"] != "POST":
            raise Denied(405, "the Fleet API takes POST alone")
        headers = {key.decode("latin1"): value.decode("latin1") for key, value in scope["headers"]}
        address = (scope.get("client") or ("unknown",))[0]
        loop = asyncio.get_running_loop()
        peer = self._fleet.authenticate(headers, address)
        try:
            body = await asyncio.wait_for(_read(headers, receive), _BODY_S)
        except Denied as denied:
            self._fleet.log(f"site {peer.name} was denied {name}: {denied.words}")
            raise
        return await loop.run_in_executor(
            self._threads, self._fleet.answer, name, headers, peer, body
        )


async def _read(headers: Mapping[str, str], receive: Receive) -> bytes:
    """The request's body; raises :class:`Denied` as soon as it is too large."""
    told = headers.get("content-length", "0")
    size = int(told) if told.isdigit() else 0
    parts: list[bytes] = []
    more = True
    while more:
        if size > LARGEST_REQUEST:
            raise Denied(413, f"a request may have {LARGEST_REQUEST} bytes at most")
        event = await receive()
        if event["type"] == "http.disconnect":
            raise ConnectionError
        parts.append(event.get("body", b""))
        size = sum(map(len, parts))
        more = event.get("more_body", False)
    return b"".join(parts)


class HttpsServer(AsgiServer):
    """Serves a fleet on a thread of its own; use as a context manager."""

    def __init__(self, fleet: Fleet, host: str, port: int, *, certificate: Path, key: Path) -> None:
        """As :class:`AsgiServer` has it."""
        super().__init__(_Application(fleet), host, port, certificate=certificate, key=key)
        self._files = certificate, key
        self._hub = fleet.hub

    def __exit__(self, *exception: object) -> None:
        self._hub.close()  # Or those who wait would be answered with an error.
        super().__exit__(*exception)

    def renew(self) -> None:
        """Use the certificate and key as they are on the disk now, for every new connection."""
        context = self._config.ssl
        assert isinstance(context, ssl.SSLContext)
        context.load_cert_chain(*self._files)
