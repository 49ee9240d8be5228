"""What stands between a hospital and the world: a proxy by CONNECT, and one that inspects TLS."""

from __future__ import annotations

import base64
import select
import socket
import ssl
import threading
from contextlib import suppress
from pathlib import Path


class _Listening:
    """Takes connections on loopback, each on a thread; use as a context manager."""

    def __init__(self) -> None:
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = int(self._listener.getsockname()[1])
        self.served = 0
        threading.Thread(target=self._accept, daemon=True).start()

    def __enter__(self) -> _Listening:
        return self

    def __exit__(self, *exception: object) -> None:
        self._listener.close()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                near, _ = self._listener.accept()
                threading.Thread(target=self._guarded, args=(near,), daemon=True).start()

    def _guarded(self, near: socket.socket) -> None:
        with suppress(OSError):
            self.serve(near)

    def serve(self, near: socket.socket) -> None:
        raise NotImplementedError


def _join(one: socket.socket, other: socket.socket) -> None:
    """Pass what comes from either to the other until one closes."""

    def passing(source: socket.socket, sink: socket.socket) -> None:
        with suppress(OSError):
            while data := source.recv(65536):
                sink.sendall(data)
        for each in (source, sink):
            with suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)

    threading.Thread(target=passing, args=(one, other), daemon=True).start()
    passing(other, one)


def _alternate(one: ssl.SSLSocket, other: ssl.SSLSocket) -> None:
    """As :func:`_join`, on one thread: an SSL socket is not to be read and written by two."""
    sinks = {one: other, other: one}
    with one, other:
        while True:
            ready = [each for each in sinks if each.pending()]
            for source in ready or select.select([*sinks], [], [])[0]:
                source.setblocking(False)
                try:
                    data = source.recv(65536)
                except ssl.SSLWantReadError:  # What came was TLS's own, such as a ticket.
                    continue
                finally:
                    source.setblocking(True)
                if not data:
                    return
                sinks[source].sendall(data)


class ConnectProxy(_Listening):
    """Opens a tunnel for who has the name and the password."""

    def __init__(self, name: str, password: str) -> None:
        self._right = base64.b64encode(f"{name}:{password}".encode()).decode()
        super().__init__()

    def serve(self, near: socket.socket) -> None:
        head = b""
        while b"\r\n\r\n" not in head:
            head += near.recv(4096)
        lines = head.decode("latin1").split("\r\n")
        if f"proxy-authorization: basic {self._right.lower()}" not in map(str.lower, lines):
            near.sendall(b"HTTP/1.1 407 Proxy Authentication Required\r\n\r\n")
            near.close()
            return
        host, _, port = lines[0].split()[1].rpartition(":")
        far = socket.create_connection((host, int(port)))
        near.sendall(b"HTTP/1.1 200 Connection established\r\n\r\n")
        self.served += 1
        _join(near, far)


class Inspector(_Listening):
    """Ends the TLS of a site with a certificate of its own authority, and begins one to the
    coordinator: it reads all that passes."""

    def __init__(self, own: Path, port: int, trusted: Path) -> None:
        """``own`` holds its ``server.crt`` and ``server.key``; ``trusted`` is the coordinator's
        authority."""
        self._near = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self._near.load_cert_chain(own / "server.crt", own / "server.key")
        self._far = ssl.create_default_context(cafile=str(trusted))
        self._to = port
        super().__init__()

    def serve(self, near: socket.socket) -> None:
        with suppress(ssl.SSLError):
            inside = self._near.wrap_socket(near, server_side=True)
            outside = self._far.wrap_socket(
                socket.create_connection(("127.0.0.1", self._to)), server_hostname="127.0.0.1"
            )
            self.served += 1
            _alternate(inside, outside)
