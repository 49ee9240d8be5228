"""The site's end of Flower's Fleet API, over HTTPS or gRPC. Connections go out, none come in."""

from __future__ import annotations

import base64
import datetime
import json
import secrets
import ssl
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, Protocol

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
    load_ssh_private_key,
)

from fedshift import UserError, __version__
from fedshift.protocol.fleet import (
    CALLS,
    INSTANCE,
    MEDIA_TYPE,
    PUBLIC_KEY,
    SERVICE,
    SIGNATURE,
    TIMESTAMP,
    VERSION,
)

TIMEOUT_S = 30.0
LARGEST_ANSWER = 16 * 2**20
"""Bytes; an object has at most some five MiB."""
_PASSING = (407, 408, 425, 429)
"""What passes, or is a proxy's; as all of 500 and more."""
_SIGNED_S = 20.0
"""A signature of the time serves so long: making and checking one takes milliseconds."""


class Unreachable(Exception):
    """The coordinator cannot be reached, or did not answer; it may later."""


class Denied(Exception):
    """The coordinator does not serve the request, and says why."""

    def __init__(self, status: int, words: str) -> None:
        super().__init__(words)
        self.status = status


@dataclass(frozen=True)
class Address:
    """Where the coordinator is, and how it is known to be the right one.

    ``root_certificates``: a PEM file of the authorities that are trusted, None for the system's.
    ``certificate``: the site's own, of the key in ``key``, which gRPC asks for. ``proxy``: of HTTP,
    as ``http://name:password@host:port``; None: what the environment's HTTPS_PROXY says.
    """

    server: str
    key: Path
    root_certificates: Path | None = None
    transport: Literal["https", "grpc"] = "https"
    certificate: Path | None = None
    proxy: str | None = None


class Connection(Protocol):
    """Makes calls of the Fleet API."""

    def call(self, name: str, **fields: Any) -> Any:
        """Make the call ``name`` and return its response; raises :class:`Unreachable` and
        :class:`Denied`."""

    def close(self) -> None:
        """Let go of the connection."""


class Signer:
    """The site's key, and the headers that prove that a request comes from its holder."""

    def __init__(self, key: Path, clock: Callable[[], float] = time.time) -> None:
        """Raises :class:`UserError` for a file that holds no private key on an elliptic curve."""
        try:
            data = key.read_bytes()
            is_ssh = b"OPENSSH PRIVATE KEY" in data[:100]
            load = load_ssh_private_key if is_ssh else load_pem_private_key
            private = load(data, password=None)
        except OSError as error:
            raise UserError(
                f"{key} cannot be read ({error.strerror}); `fedshift client key` makes a site's key"
            ) from error
        except (ValueError, TypeError, UnsupportedAlgorithm) as error:
            raise UserError(
                f"{key} holds no private key without a password; `fedshift client key` makes one"
            ) from error
        if not isinstance(private, ec.EllipticCurvePrivateKey):
            raise UserError(f"{key} holds no key on an elliptic curve; make it by `client key`")
        self._private = private
        self._clock = clock
        self._instance = secrets.token_hex(8)
        self._signed: tuple[float, dict[str, str]] = (-_SIGNED_S, {})

    @cached_property
    def public(self) -> bytes:
        """The public key in PEM, by which the coordinator knows the site."""
        return self._private.public_key().public_bytes(
            Encoding.PEM, PublicFormat.SubjectPublicKeyInfo
        )

    @property
    def private_pem(self) -> bytes:
        """The private key as TLS libraries take it."""
        return self._private.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())

    def headers(self) -> Mapping[str, str]:
        """Of a request that is made now."""
        at, found = self._signed
        if not 0 <= self._clock() - at < _SIGNED_S:
            now = self._clock()
            moment = datetime.datetime.fromtimestamp(now, datetime.UTC).isoformat()
            signature = self._private.sign(moment.encode(), ec.ECDSA(hashes.SHA256()))
            found = {
                PUBLIC_KEY: base64.b64encode(self.public).decode(),
                TIMESTAMP: moment,
                SIGNATURE: base64.b64encode(signature).decode(),
                VERSION: __version__,
                INSTANCE: self._instance,
            }
            self._signed = now, found
        return found


def connect(address: Address, signer: Signer) -> Connection:
    """Connect over the transport of ``address``; raises :class:`UserError` for a file that is
    missing or unusable."""
    return (Grpc if address.transport == "grpc" else Https)(address, signer)


class Https:
    """Calls as protobuf in the bodies of HTTPS requests."""

    def __init__(self, address: Address, signer: Signer) -> None:
        import httpx

        self._httpx = httpx
        self._signer = signer
        self._base = f"https://{address.server}"
        self._client = httpx.Client(
            verify=trust(address.root_certificates), timeout=TIMEOUT_S, proxy=address.proxy
        )

    def call(self, name: str, **fields: Any) -> Any:
        """See :class:`Connection`."""
        call = CALLS[name]
        headers = {"content-type": MEDIA_TYPE, "accept": MEDIA_TYPE, **self._signer.headers()}
        content = call.request(**fields).SerializeToString()
        try:
            with self._client.stream(
                "POST", self._base + call.path, content=content, headers=headers
            ) as response:
                body = bytearray()
                for part in response.iter_bytes():
                    body += part
                    if len(body) > LARGEST_ANSWER:
                        raise Unreachable("the coordinator's answer is larger than any is")
        except self._httpx.HTTPError as error:
            raise Unreachable(f"{type(error).__name__}: {error}") from error
        if response.status_code >= 500 or response.status_code in _PASSING:
            raise Unreachable(f"the coordinator or a proxy answers {response.status_code}")
        if response.status_code != 200:
            raise Denied(response.status_code, _words(bytes(body), response.status_code))
        return _parsed(call.response, bytes(body))

    def close(self) -> None:
        """See :class:`Connection`."""
        self._client.close()


class Grpc:
    """Calls over gRPC, with the site's certificate."""

    def __init__(self, address: Address, signer: Signer) -> None:
        import grpc

        self._grpc = grpc
        self._signer = signer
        if address.certificate is None:
            raise UserError(
                "transport=grpc asks for the site's certificate, which `fedshift server enroll` "
                "writes: name it with --certificate"
            )
        roots = None if address.root_certificates is None else _read(address.root_certificates)
        credentials = grpc.ssl_channel_credentials(
            roots, signer.private_pem, _read(address.certificate)
        )
        self._channel = grpc.secure_channel(
            address.server,
            credentials,
            options=[
                ("grpc.max_receive_message_length", LARGEST_ANSWER),
                ("grpc.initial_reconnect_backoff_ms", 500),
                ("grpc.max_reconnect_backoff_ms", 3000),
            ],
        )

    def call(self, name: str, **fields: Any) -> Any:
        """See :class:`Connection`."""
        call = CALLS[name]
        make = self._channel.unary_unary(f"/{SERVICE}/{name}")
        metadata = tuple(self._signer.headers().items())
        body = call.request(**fields).SerializeToString()
        try:
            answer = make(body, metadata=metadata, timeout=TIMEOUT_S)
        except self._grpc.RpcError as error:
            code = error.code()
            words = error.details() or str(code)
            statuses = {
                self._grpc.StatusCode.UNAUTHENTICATED: 401,
                self._grpc.StatusCode.FAILED_PRECONDITION: 422,
                self._grpc.StatusCode.INVALID_ARGUMENT: 400,
                self._grpc.StatusCode.UNIMPLEMENTED: 404,
                self._grpc.StatusCode.ALREADY_EXISTS: 409,
                self._grpc.StatusCode.NOT_FOUND: 410,
            }
            if code in statuses:
                raise Denied(statuses[code], words) from error
            raise Unreachable(words) from error
        return _parsed(call.response, answer)

    def close(self) -> None:
        """See :class:`Connection`."""
        self._channel.close()


def trust(root_certificates: Path | None) -> ssl.SSLContext:
    """A context that trusts those authorities; raises :class:`UserError` for no file of some."""
    if root_certificates is None:
        return ssl.create_default_context()
    try:
        return ssl.create_default_context(cafile=str(root_certificates))
    except (OSError, ssl.SSLError) as error:
        raise UserError(
            f"{root_certificates} holds no certificates in PEM ({error}); it is the file ca.crt "
            "that the coordinator hands out"
        ) from error


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror})") from error


def _words(body: bytes, status: int) -> str:
    try:
        return str(json.loads(body)["detail"])[:1000]
    except (ValueError, KeyError, TypeError, RecursionError):
        return f"it answers {status}; is a fedshift server there?"


def _parsed(kind: type[Any], body: bytes) -> Any:
    try:
        return kind.FromString(body)
    except Exception as error:
        raise Unreachable("the coordinator's answer cannot be read") from error
