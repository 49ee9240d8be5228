"""The Fleet API over gRPC: the same calls, with mutual TLS."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc

from fedshift import UserError
from fedshift.protocol.fleet import CALLS, SERVICE
from fedshift.server.fleet.service import LARGEST_REQUEST, Denied, Fleet

_THREADS = 1024
_STATUS = {
    400: grpc.StatusCode.INVALID_ARGUMENT,
    401: grpc.StatusCode.UNAUTHENTICATED,
    404: grpc.StatusCode.UNIMPLEMENTED,
    409: grpc.StatusCode.ALREADY_EXISTS,
    410: grpc.StatusCode.NOT_FOUND,
    422: grpc.StatusCode.FAILED_PRECONDITION,
    426: grpc.StatusCode.FAILED_PRECONDITION,
}


class GrpcServer:
    """Serves a fleet over gRPC; use as a context manager."""

    def __init__(
        self, fleet: Fleet, host: str, port: int, *, certificate: Path, key: Path, authority: Path
    ) -> None:
        """Listens on ``host`` and ``port`` (0: a free one). Whoever connects needs a certificate of
        the ``authority``, as sites get when they are enrolled."""
        self._server = grpc.server(
            ThreadPoolExecutor(_THREADS, "fleet"),
            options=[
                ("grpc.max_receive_message_length", LARGEST_REQUEST),
                ("grpc.so_reuseport", 0),  # Else two servers may share a port without a word.
            ],
        )
        handlers = {name: _handler(fleet, name) for name in CALLS}
        self._server.add_generic_rpc_handlers(
            [grpc.method_handlers_generic_handler(SERVICE, handlers)]
        )

        def read() -> Any:
            return grpc.ssl_server_certificate_configuration(
                [(key.read_bytes(), certificate.read_bytes())], authority.read_bytes()
            )

        # Read anew for every connection, so that a certificate can be renewed.
        credentials = grpc.dynamic_ssl_server_credentials(
            read(), read, require_client_authentication=True
        )
        try:
            self.port = self._server.add_secure_port(f"{host}:{port}", credentials)
        except RuntimeError as error:
            raise UserError(
                f"cannot listen on {host}:{port} for gRPC; is another server there? choose another "
                "port"
            ) from error

    def __enter__(self) -> GrpcServer:
        self._server.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._server.stop(grace=None).wait(10)

    def renew(self) -> None:
        """Nothing to do: the files are read for every connection."""


def _handler(fleet: Fleet, name: str) -> grpc.RpcMethodHandler:
    def answer(body: bytes, context: grpc.ServicerContext) -> bytes:
        try:
            headers = {key: str(value) for key, value in context.invocation_metadata()}
            peer = fleet.authenticate(headers, context.peer())
            return fleet.answer(name, headers, peer, body)
        except Denied as denied:
            context.abort(_STATUS.get(denied.status, grpc.StatusCode.UNKNOWN), denied.words)
            raise

    # Of bytes: who asks is checked before anything is parsed.
    return grpc.unary_unary_rpc_method_handler(answer)
