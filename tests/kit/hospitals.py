"""A deployment on loopback: a coordinator in this process, sites as processes of their own, and a
line between them that can be cut."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from fedshift.client.agent.keys import make_key
from fedshift.client.agent.status import read
from fedshift.runs.config import load
from fedshift.runs.deploy import deploy
from fedshift.server.fleet import keys
from fedshift.server.fleet.grid import FleetGrid
from fedshift.server.fleet.grpc import GrpcServer
from fedshift.server.fleet.https import HttpsServer
from fedshift.server.fleet.hub import Hub
from fedshift.server.fleet.service import Fleet
from fedshift.sites.example import labels

COMMAND = [sys.executable, "-c", "from fedshift.cli import main; main()"]
LABELS = ",".join(f"{name}: {value}" for name, value in labels().items())
SMALL = (
    "federation=manifest",
    f"data.labels={{{LABELS}}}",
    "data.size=32",
    "method.depth=3",
    "method.width=4",
    "rounds=2",
    "local_steps=2",
    "baselines=[]",
    "engine.workers=1",
)


def free_port() -> int:
    """A port of loopback that nobody listens on just now."""
    with socket.create_server(("127.0.0.1", 0)) as found:
        return int(found.getsockname()[1])


def config(table: Path, *overrides: str) -> dict[str, Any]:
    """A small run of the sites in ``table``, for a simulation and a deployment."""
    return load([*SMALL, f"data.manifest={table}", *overrides])


class Coordinator:
    """Hub and server; use as a context manager."""

    def __init__(self, folder: Path, transport: str = "https", **hub: Any) -> None:
        self.folder, self.transport = folder, transport
        self.refused: list[tuple[str, str]] = []
        self.log: list[str] = []
        folder.mkdir(parents=True, exist_ok=True)
        keys.make_authority(folder)
        keys.make_certificate(folder, ["127.0.0.1", "localhost"])
        self.hub = Hub(tell=lambda name, what: self.refused.append((name, what)), **hub)
        fleet = Fleet(self.hub, log=self.log.append)
        pair = {"certificate": folder / "server.crt", "key": folder / "server.key"}
        self.server: HttpsServer | GrpcServer
        if transport == "https":
            self.server = HttpsServer(fleet, "127.0.0.1", 0, **pair)
        else:
            self.server = GrpcServer(fleet, "127.0.0.1", 0, **pair, authority=folder / "ca.crt")

    def __enter__(self) -> Coordinator:
        self.server.__enter__()
        return self

    def __exit__(self, *exception: object) -> None:
        self.server.__exit__(*exception)

    @property
    def port(self) -> int:
        return self.server.port

    def enrol(self, name: str) -> Path:
        """Make and enrol a site's key; its private half."""
        private, public = self.folder / f"{name}.key", self.folder / f"{name}.pub"
        if not private.exists():
            make_key(private, public)
        pem = keys.public_pem(public.read_bytes())
        self.hub.enrol(name, pem)
        private.with_suffix(".crt").write_bytes(keys.certify(self.folder, name, pem))
        return private

    def run(self, out: Path, of: dict[str, Any], sites: Sequence[str]) -> Run:
        """Begin a run of real sites, on a thread."""
        return Run(self.hub, out, of, sites)


class Run(threading.Thread):
    """A run of a coordinator in this process; :meth:`end` waits for it and raises what it did."""

    def __init__(self, hub: Hub, out: Path, of: dict[str, Any], sites: Sequence[str]) -> None:
        super().__init__(daemon=True)
        self.out, self.told = out, list[str]()
        self._hub, self._of, self._sites = hub, of, sites
        self._error: BaseException | None = None
        self.start()

    def run(self) -> None:
        try:
            with FleetGrid(self._hub) as grid:
                deploy(self.out, self._of, grid, self.told.append, sites=self._sites, wait_s=90)
        except BaseException as error:
            self._error = error

    def end(self, seconds: float = 240) -> Path:
        self.join(seconds)
        assert not self.is_alive(), "the run did not end"
        if self._error is not None:
            raise self._error
        return self.out

    @property
    def rounds(self) -> list[dict[str, Any]]:
        path = self.out / "rounds.jsonl"
        lines = path.read_text().splitlines() if path.exists() else []
        return [json.loads(line) for line in lines]


class SiteProcess:
    """``fedshift client`` as a process; ended by its id."""

    def __init__(
        self, at: Coordinator, name: str, data: Path, *options: str, port: int | None = None
    ) -> None:
        self.name, self.state = name, at.folder / f"state_{name}"
        key = at.enrol(name)
        policy = at.folder / "policy.yaml"
        policy.write_text("ask: false\n")
        self._command = [
            *COMMAND,
            "client",
            *("--site", name),
            *("--data", str(data)),
            *("--server", f"127.0.0.1:{port or at.port}"),
            *("--root-certificates", str(at.folder / "ca.crt")),
            *("--key", str(key)),
            *("--state", str(self.state)),
            *("--policy", str(policy)),
            *("--device", "cpu"),
        ]
        if at.transport == "grpc":
            crt = str(key.with_suffix(".crt"))
            self._command += ["--transport", "grpc", "--certificate", crt]
        self._command += options
        self.begin()

    def begin(self) -> None:
        """Start it, also once more."""
        self.process = subprocess.Popen(
            self._command,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )

    def works(self, on: str) -> bool:
        """Whether it is answering a message of this type now."""
        status = read(self.state) if (self.state / "status.json").exists() else None
        return status is not None and status.working == on

    def kill(self) -> None:
        """As a power cut does it."""
        self.process.send_signal(signal.SIGKILL)
        self.process.wait(20)

    def end(self) -> int:
        """End it in order; its exit code."""
        if self.process.poll() is None:
            self.process.terminate()
        try:
            return self.process.wait(40)
        finally:
            if self.process.poll() is None:
                self.process.kill()
                self.process.wait()


class Line:
    """A TCP line to ``port`` that can be cut and mended: while it is cut nothing gets through, and
    nobody is told."""

    def __init__(self, port: int) -> None:
        self._to = port
        self._open = threading.Event()
        self._open.set()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = int(self._listener.getsockname()[1])
        threading.Thread(target=self._accept, daemon=True).start()

    def cut(self) -> None:
        self._open.clear()

    def mend(self) -> None:
        self._open.set()

    def close(self) -> None:
        self._open.set()
        self._listener.close()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                near, _ = self._listener.accept()
                self._open.wait()
                far = socket.create_connection(("127.0.0.1", self._to))
                for one, other in ((near, far), (far, near)):
                    threading.Thread(target=self._pass, args=(one, other), daemon=True).start()

    def _pass(self, one: socket.socket, other: socket.socket) -> None:
        with suppress(OSError):
            while data := one.recv(65536):
                self._open.wait()
                other.sendall(data)
        for each in (one, other):
            with suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
                each.close()
