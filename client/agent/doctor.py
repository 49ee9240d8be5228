"""What may be wrong before a site takes part, looked at one by one, each with its way out."""

from __future__ import annotations

import email.utils
import http.client
import os
import shutil
import socket
import ssl
import stat
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from urllib.parse import unquote, urlsplit

from cryptography import x509

from fedshift import UserError
from fedshift.client.agent.connection import (
    Address,
    Denied,
    Signer,
    Unreachable,
    connect,
    trust,
)
from fedshift.protocol.fleet import Node
from fedshift.protocol.nodes import node_id

AHEAD_S = 5.0
BEHIND_S = 305.0
"""How far this clock may be off the coordinator's."""
_TIMEOUT_S = 10.0
_SOON_DAYS = 30
_LITTLE_DISK = 2 * 10**9


@dataclass(frozen=True)
class Check:
    """One thing looked at: ``level`` is ``ok``, ``warning`` or ``error``; ``told`` what was found,
    with the way out where there is one."""

    name: str
    level: str
    told: str


Look = Callable[[], Iterator[Check]]


def examine(address: Address, folder: Path) -> Iterator[Check]:
    """Look at the key, the disk that holds ``folder``, the way to the coordinator, its certificate,
    the clocks, and whether the key is enrolled."""
    yield from _guarded("key", lambda: _key(address.key))
    yield from _guarded("disk", lambda: _disk(folder))
    host, port = split(address.server)
    reached: list[socket.socket] = []
    yield from _guarded("reach", lambda: _reach(address, host, port, reached))
    if not reached:
        return
    trusted: list[ssl.SSLSocket] = []
    yield from _guarded("certificate", lambda: _certificate(address, host, reached[0], trusted))
    if not trusted:
        return
    with trusted[0] as channel:
        if address.transport == "https":
            yield from _guarded("clock", lambda: _clock(channel, host))
    yield from _guarded("enrolment", lambda: _enrolled(address))


def _guarded(name: str, look: Look) -> Iterator[Check]:
    try:
        yield from look()
    except UserError as error:
        yield Check(name, "error", str(error))


def split(server: str) -> tuple[str, int]:
    """Host and port of ``HOST:PORT``; raises :class:`UserError` for another text."""
    host, colon, port = server.rpartition(":")
    if not colon or not host or not port.isdigit() or not 0 < int(port) < 2**16:
        raise UserError(f"--server must be HOST:PORT, such as fl.example.org:9092, not {server!r}")
    return host.strip("[]"), int(port)


def _key(path: Path) -> Iterator[Check]:
    Signer(path)
    if path.stat().st_mode & (stat.S_IRWXG | stat.S_IRWXO):
        yield Check(
            "key", "error", f"{path} can be read by others than its owner: chmod 600 {path}"
        )
    else:
        yield Check("key", "ok", f"{path} is a private key that its owner alone can read")


def _disk(folder: Path) -> Iterator[Check]:
    place = next(place for place in (folder, *folder.absolute().parents) if place.exists())
    free = shutil.disk_usage(place).free
    if not os.access(place, os.W_OK):
        yield Check("disk", "error", f"{place} cannot be written: name another --state")
    elif free < _LITTLE_DISK:
        yield Check("disk", "warning", f"{free / 1e9:.1f} GB are free at {place}: make room")
    else:
        yield Check("disk", "ok", f"{free / 1e9:.0f} GB are free at {place}")


def _reach(address: Address, host: str, port: int, reached: list[socket.socket]) -> Iterator[Check]:
    proxy = address.proxy or _proxy_of_environment(host)
    try:
        if proxy and address.transport == "https":
            reached.append(_through(proxy, host, port))
            yield Check("reach", "ok", f"{host}:{port} answers through the proxy")
        else:
            reached.append(socket.create_connection((host, port), _TIMEOUT_S))
            yield Check("reach", "ok", f"{host}:{port} answers")
    except socket.gaierror:
        yield Check("reach", "error", f"the name {host} is unknown here: check --server and DNS")
    except (OSError, http.client.HTTPException) as error:
        way = "the proxy" if proxy else "the firewall (outbound TCP), and that the server runs"
        told = f"{host}:{port} cannot be reached ({error}): check the address, {way}"
        yield Check("reach", "error", told)


def _proxy_of_environment(host: str) -> str | None:
    import urllib.request

    if urllib.request.proxy_bypass(host):
        return None
    found = urllib.request.getproxies()
    return found.get("https") or found.get("all")


def _through(proxy: str, host: str, port: int) -> socket.socket:
    """A tunnel by CONNECT, with the name and password of the proxy's address."""
    import base64

    at = urlsplit(proxy)
    tunnel = http.client.HTTPConnection(at.hostname or "", at.port or 8080, timeout=_TIMEOUT_S)
    headers = {}
    if at.username:
        pair = f"{unquote(at.username)}:{unquote(at.password or '')}"
        headers["Proxy-Authorization"] = "Basic " + base64.b64encode(pair.encode()).decode()
    tunnel.set_tunnel(host, port, headers)
    tunnel.connect()
    assert tunnel.sock is not None
    return tunnel.sock


def _certificate(
    address: Address, host: str, plain: socket.socket, trusted: list[ssl.SSLSocket]
) -> Iterator[Check]:
    context = trust(address.root_certificates)
    if address.transport == "grpc":
        context.set_alpn_protocols(["h2"])
        if address.certificate is not None:
            try:
                with tempfile.NamedTemporaryFile() as key:  # Only a file is taken; nobody reads it.
                    key.write(Signer(address.key).private_pem)
                    key.flush()
                    context.load_cert_chain(address.certificate, key.name)
            except (OSError, ssl.SSLError) as error:
                raise UserError(
                    f"{address.certificate} is no certificate of the key {address.key} ({error}): "
                    "`fedshift server enroll` writes it anew"
                ) from error
    try:
        channel = context.wrap_socket(plain, server_hostname=host)
    except ssl.SSLCertVerificationError as error:
        yield Check("certificate", "error", _mistrust(error, host))
        return
    except (OSError, ssl.SSLError) as error:
        told = f"no TLS is spoken there ({error}): is it the port of a fedshift server?"
        yield Check("certificate", "error", told)
        return
    trusted.append(channel)
    end = x509.load_der_x509_certificate(channel.getpeercert(binary_form=True) or b"")
    days = (end.not_valid_after_utc - datetime.now(UTC)).days
    told = f"trusted, for {host}, until {end.not_valid_after_utc:%Y-%m-%d}"
    if days < _SOON_DAYS:
        told += ": ask the coordinator for `fedshift server keys --renew`"
    yield Check("certificate", "ok" if days >= _SOON_DAYS else "warning", told)


def _mistrust(error: ssl.SSLCertVerificationError, host: str) -> str:
    words = error.verify_message or str(error)
    if "expired" in words:
        return (
            "the coordinator's certificate is expired (or this clock is wrong): ask for "
            "`fedshift server keys --renew`"
        )
    if "not yet valid" in words:
        return "the coordinator's certificate is not valid yet: this clock is behind; set it by NTP"
    if "mismatch" in words or "not valid for" in words:
        return (
            f"the certificate is of another host than {host}: ask for `fedshift server keys "
            f"--renew --host {host}`, or use the name that it is for"
        )
    return (
        f"the certificate is not of an authority that is trusted ({words}): --root-certificates "
        "must name the coordinator's ca.crt, or the authority of a TLS inspection in between"
    )


def _clock(channel: ssl.SSLSocket, host: str) -> Iterator[Check]:
    channel.settimeout(_TIMEOUT_S)
    asked = time.time()
    channel.sendall(f"GET / HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n".encode("idna"))
    response = http.client.HTTPResponse(channel)
    try:
        response.begin()
        date = email.utils.parsedate_to_datetime(response.headers.get("date") or "")
    except (OSError, http.client.HTTPException, TypeError, ValueError):
        yield Check("clock", "warning", "the coordinator tells no time: check both by NTP")
        return
    # It tells whole seconds.
    ahead = (asked + time.time()) / 2 - (date.timestamp() + 0.5)
    by = f"{abs(ahead):.0f} s {'ahead of' if ahead > 0 else 'behind'} the coordinator's"
    if not -BEHIND_S < ahead < AHEAD_S:
        yield Check("clock", "error", f"this clock is {by}: set it by NTP, or no request is served")
    elif abs(ahead) > AHEAD_S / 2:
        yield Check("clock", "warning", f"this clock is {by}: set it by NTP")
    else:
        yield Check("clock", "ok", f"this clock is within {AHEAD_S / 2:g} s of the coordinator's")


def _enrolled(address: Address) -> Iterator[Check]:
    signer = Signer(address.key)
    connection = connect(address, signer)
    try:
        connection.call(
            "SendNodeHeartbeat",
            node=Node(node_id=node_id(signer.public)),
            heartbeat_interval=30.0,
        )
    except Unreachable as error:
        yield Check("enrolment", "error", f"the coordinator does not answer: {error}")
        return
    except Denied as denied:
        # Known, but not this process: the agent runs, or has not begun.
        if denied.status not in (409, 410):
            yield Check("enrolment", "error", str(denied))
            return
    finally:
        connection.close()
    yield Check("enrolment", "ok", "the coordinator knows this site's key")
