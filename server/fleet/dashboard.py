"""The live page, read-only, for whoever sits at the coordinator's machine."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from typing import Any

from fedshift.server.fleet.asgi import Receive, Send
from fedshift.server.report.html import policy

_EVERY_S = 10
_LOCAL = ("127.0.0.1", "[::1]", "localhost")
_HEADERS = {
    "content-type": "text/html; charset=utf-8",
    "content-security-policy": f"{policy()}; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'",
    "cache-control": "no-store",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "referrer-policy": "no-referrer",
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "refresh": str(_EVERY_S),
}


class Dashboard:
    """An ASGI application that answers GET / with a page, and nothing else."""

    def __init__(self, page: Callable[[], str]) -> None:
        """``page`` draws it; it is called in a thread."""
        self._page = page

    async def __call__(self, scope: Mapping[str, Any], receive: Receive, send: Send) -> None:
        """See ASGI's HTTP interface."""
        if scope["type"] != "http":
            return
        status, body = 200, ""
        hosts = [value.decode("latin1") for key, value in scope["headers"] if key == b"host"]
        if not hosts or hosts[0].rsplit(":", 1)[0] not in _LOCAL:
            # Another site's page, whose name was made to mean this machine, must not read it.
            status, body = 421, "This page is for this machine alone."
        elif scope["path"] != "/":
            status, body = 404, "There is nothing here."
        elif scope["method"] != "GET":
            status, body = 405, "This page is only read."
        else:
            body = await asyncio.to_thread(self._page)
        data = body.encode(errors="backslashreplace")
        headers = {**_HEADERS, "content-length": str(len(data))}
        encoded = [(key.encode(), value.encode()) for key, value in headers.items()]
        await send({"type": "http.response.start", "status": status, "headers": encoded})
        await send({"type": "http.response.body", "body": data})
