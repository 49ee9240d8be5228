"""The coordinator of real sites: one process that the sites connect to, and the runs in it."""

from __future__ import annotations

import logging
import os
import re
import time
from collections import deque
from contextlib import ExitStack, suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from fedshift import UserError
from fedshift.protocol.lock import alone_in
from fedshift.protocol.logs import logged_to
from fedshift.runs.submitted import Deploy, Runs
from fedshift.runs.watching import Tell, silent
from fedshift.server.fleet import control, keys
from fedshift.server.fleet.asgi import AsgiServer
from fedshift.server.fleet.dashboard import Dashboard
from fedshift.server.fleet.grpc import GrpcServer
from fedshift.server.fleet.https import HttpsServer
from fedshift.server.fleet.hub import Hub
from fedshift.server.fleet.roster import Roster
from fedshift.server.fleet.service import Fleet
from fedshift.server.report.live import LivePage, LiveRun, LiveSite, Refused

log = logging.getLogger("fedshift.server")

_KEPT_REFUSALS = 50


@dataclass(frozen=True)
class ServeSettings:
    """Where a server listens (``HOST:PORT`` each; None: not at all), when a site counts as away
    (seconds without contact), and the largest reply that it takes (MB)."""

    listen: str = "127.0.0.1:9443"
    grpc: str | None = None
    dashboard: str | None = None
    lease_s: float = 15.0
    max_message_mb: float = 1000.0


class Server:
    """Serves the sites enrolled in ``state``, runs what is submitted, and obeys commands on its
    socket; use as a context manager, which begins with the runs that an earlier one left."""

    def __init__(
        self, state: Path, settings: ServeSettings, deploy: Deploy, tell: Tell = silent
    ) -> None:
        """Runs are run by ``deploy``. ``tell`` is given what is worth a line on the screen, all of
        which is in the log, too. Raises :class:`UserError` when there are no keys, or a port cannot
        be had."""
        self.state = state
        self.settings = settings
        self._said = tell
        self._refused: deque[Refused] = deque(maxlen=_KEPT_REFUSALS)
        self._roster = Roster(state)
        self._stack = ExitStack()
        self.hub = Hub(
            lease_s=settings.lease_s,
            most_bytes=settings.max_message_mb * 1e6,
            tell=self._refuse,
        )
        self.runs = Runs(state, self.hub, deploy, self._tell)
        self._transports: list[HttpsServer | GrpcServer] = []
        self.ports: dict[str, int] = {}

    def __enter__(self) -> Server:
        with ExitStack() as stack:
            self._open(stack)
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *exception: object) -> None:
        log.info("the server ends")
        self._stack.close()

    def _open(self, stack: ExitStack) -> None:
        private(self.state)
        stack.enter_context(
            alone_in(
                self.state,
                f"another server runs with {self.state}; stop it or choose another --state DIR",
            )
        )
        stack.enter_context(logged_to(self.state / "server.jsonl"))
        files = {
            "certificate": self.state / "server.crt",
            "key": self.state / "server.key",
        }
        if not all(file.exists() for file in files.values()):
            raise UserError(
                f"{self.state} holds no certificate; `fedshift server keys` makes the authority, "
                "the certificate and their keys"
            )
        self._roster.admit(self.hub)
        fleet = Fleet(self.hub, log=log.info)
        host, port = address(self.settings.listen, "--listen")
        self._transports = [HttpsServer(fleet, host, port, **files)]
        if self.settings.grpc is not None:
            host, port = address(self.settings.grpc, "--grpc")
            authority = self.state / "ca.crt"
            self._transports.append(GrpcServer(fleet, host, port, **files, authority=authority))
        stack.callback(self.hub.close)
        names = ("https", "grpc")
        for name, transport in zip(names, self._transports, strict=False):
            stack.enter_context(transport)
            self.ports[name] = transport.port
        if self.settings.dashboard is not None:
            host, port = loopback(self.settings.dashboard)
            drawn = LivePage()
            page = AsgiServer(Dashboard(lambda: drawn.draw(*self.live())), host, port)
            stack.enter_context(page)
            self.ports["dashboard"] = page.port
        commands: dict[str, control.Command] = {
            "reload": lambda: self._roster.admit(self.hub),
            "renew": self._renew,
            "sites": lambda: [asdict(site) for site in self._sites()],
            "runs": self.runs.listed,
            "submit": self.runs.submit,
            "stop": self.runs.stop,
            "resume": self.runs.resume,
        }
        stack.callback(self.runs.close)
        self.runs.recover()
        stack.enter_context(control.ControlServer(self.state, commands))
        for name, port in self.ports.items():
            self._tell(f"{name} on port {port}")

    def _renew(self) -> None:
        for transport in self._transports:
            transport.renew()

    def _sites(self) -> list[LiveSite]:
        awaited = self.hub.awaited()
        now, wall = self.hub.now(), time.time()
        return [
            LiveSite(
                name=peer.name,
                here=self.hub.met(peer),
                contact=None if peer.contact is None else wall - (now - peer.contact),
                version=peer.version,
                awaited=awaited.get(peer.name, 0),
                refused=peer.refused,
                bytes_in=peer.bytes_in,
                bytes_out=peer.bytes_out,
            )
            for peer in self.hub.peers
        ]

    def live(self) -> tuple[list[LiveSite], list[LiveRun], list[Refused]]:
        """What the dashboard shows."""
        runs = [LiveRun(**{**run, "folder": Path(run["folder"])}) for run in self.runs.listed()]
        return self._sites(), runs, list(self._refused)

    def _refuse(self, site: str, what: str) -> None:
        self._refused.append(Refused(time.time(), site, what))
        self._tell(f"site {site}: {what}")

    def _tell(self, sentence: str) -> None:
        log.info("%s", sentence)
        self._said(sentence)


def private(state: Path) -> None:
    """Make the folder ``state``, and keep all that is written from now on to its owner; raises
    :class:`UserError` when it cannot be had, as :func:`owned` does."""
    try:
        state.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(
            f"{state} cannot be used as a folder ({error.strerror}); choose another --state DIR"
        ) from error
    owned(state)
    state.chmod(0o700)


def owned(state: Path) -> None:
    """Keep all that is written from now on to its owner. Raises :class:`UserError` unless the
    folder ``state`` is there and one's own: what somebody else writes there the server could not
    read."""
    os.umask(0o077)
    if not state.is_dir():
        raise UserError(
            f"there is no folder {state}; `fedshift server keys --state {state}` begins one, or "
            "name the right one with --state DIR"
        )
    owner = state.stat().st_uid
    if owner != os.geteuid():
        raise UserError(
            f"{state} belongs to the user with id {owner}; run the command as that user, as by "
            f"`sudo -u '#{owner}'`"
        )


def address(text: str, option: str) -> tuple[str, int]:
    """``HOST:PORT`` in parts; raises :class:`UserError`."""
    found = re.fullmatch(r"\[?(?P<host>[^\[\]]+?)\]?:(?P<port>\d{1,5})", text)
    if found is None or int(found["port"]) > 65535:
        raise UserError(f"{option} {text} is no HOST:PORT; write for example 0.0.0.0:9443")
    return found["host"], int(found["port"])


def loopback(text: str) -> tuple[str, int]:
    """Where the dashboard is to listen, from ``[HOST:]PORT``; raises :class:`UserError` for what is
    not this machine alone."""
    host, port = address(text if ":" in text else f"127.0.0.1:{text}", "--dashboard")
    if host not in ("127.0.0.1", "::1", "localhost"):
        raise UserError(
            f"--dashboard {text}: the page asks nobody who he is, so it is shown on this machine "
            "alone; give a port, and reach it from elsewhere through `ssh -L`"
        )
    return host, port


def make_keys(state: Path, hosts: list[str]) -> None:
    """Make the authority, the server's certificate for ``hosts`` (this machine's if none) and their
    keys; raises :class:`UserError` when they are there."""
    private(state)
    keys.make_authority(state)
    keys.make_certificate(state, hosts or ["localhost", "127.0.0.1"])


def renew(state: Path, hosts: list[str]) -> None:
    """Make the server's certificate and key anew, for the same hosts if no others are given; a
    server that runs uses them at once."""
    private(state)
    keys.make_certificate(state, hosts or keys.hosts_of(state / "server.crt"))
    with suppress(control.NoServer):
        control.ask(state, "renew")


def changed(state: Path) -> None:
    """Have a server that runs read the roster again."""
    with suppress(control.NoServer):
        control.ask(state, "reload")
