"""``fedshift server``: the coordinator of real sites, and what its staff asks of it."""

from __future__ import annotations

import json
import signal
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from types import FrameType

import typer
from rich.table import Table

from fedshift import UserError
from fedshift.cli.console import PlainConsole
from fedshift.protocol.allocator import few_arenas
from fedshift.runs.serve import (
    Server,
    ServeSettings,
    changed,
    make_keys,
    owned,
    renew,
)
from fedshift.runs.submitted import GOING, STOPPED
from fedshift.server.fleet import control
from fedshift.server.fleet.roster import Roster
from fedshift.server.report.live import LiveRun, LiveSite
from fedshift.server.report.words import format_bytes


def serve(state: Path, settings: ServeSettings, config: Path | None) -> None:
    """Serve until SIGTERM or Ctrl-C; a second one waits for nothing."""
    few_arenas()
    console = PlainConsole()
    composed = None if config is None else _composed(config, [], None)

    from fedshift.runs.deploy import deploy

    over = threading.Event()

    def end(number: int, _: FrameType | None) -> None:
        signal.signal(number, signal.SIG_DFL)
        over.set()

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, end)
    with Server(state, settings, deploy, console.tell) as server:
        if composed is not None:
            server.runs.submit(composed)
        over.wait()
        console.tell("ending; runs that go on are gone on with when the server starts again")


def keys(state: Path, hosts: list[str], *, again: bool) -> None:
    """Make the authority and the server's certificate, or the latter anew."""
    console = PlainConsole()
    if again:
        renew(state, hosts)
        console.tell(f"{state / 'server.crt'} is renewed")
        return
    make_keys(state, hosts)
    console.tell(f"give the sites {state / 'ca.crt'}; {state / 'ca.key'} stays here")


def enroll(state: Path, name: str, public_key: Path, *, replacing: bool) -> None:
    """Let a site take part."""
    owned(state)
    certificate = Roster(state).enrol(name, public_key, replacing=replacing)
    changed(state)
    PlainConsole().tell(
        f"{name} is enrolled; with transport=grpc it needs {certificate}, with https nothing"
    )


def revoke(state: Path, name: str) -> None:
    """Let a site take part no more."""
    owned(state)
    Roster(state).revoke(name)
    changed(state)
    PlainConsole().tell(f"{name} is revoked")


def sites(state: Path, *, as_json: bool = False) -> None:
    """Print a line a site; without a running server what is on the disk."""
    owned(state)
    now = time.time()
    seen = {}
    with suppress(control.NoServer):
        seen = {node["name"]: LiveSite(**node) for node in control.ask(state, "sites")}
    if as_json:
        told = [
            {"name": one.name, "revoked": one.revoked, "contact": asdict(seen[one.name])}
            if one.name in seen
            else {"name": one.name, "revoked": one.revoked, "contact": None}
            for one in Roster(state).read()
        ]
        typer.echo(json.dumps(told, indent=1))
        return
    table = _table(
        ("site", "contact", "last heard", "version", "awaited", "refused", "received", "sent")
    )
    for enrolled in Roster(state).read():
        site = seen.get(enrolled.name)
        if enrolled.revoked is not None:
            table.add_row(enrolled.name, f"revoked {enrolled.revoked}")
        elif site is None:
            table.add_row(enrolled.name, "no server runs")
        else:
            table.add_row(
                site.name,
                "here" if site.here else "away",
                site.heard(now),
                site.version,
                str(site.awaited),
                str(site.refused),
                format_bytes(site.bytes_in),
                format_bytes(site.bytes_out),
            )
    PlainConsole().print(table)


def runs(state: Path, *, as_json: bool = False) -> None:
    """Print each run on lines of its own, so that no name of one is cut in two."""
    console = PlainConsole()
    nodes = control.ask(state, "runs")
    if as_json:
        typer.echo(json.dumps(nodes, indent=1))
        return
    for node in nodes:
        run = LiveRun(**{**node, "folder": Path(node["folder"])})
        console.tell(f"{run.name}: {run.state}, round {run.round} of {run.rounds}")
        for line in (run.told, str(run.folder)):
            if line:
                console.tell(f"  {line}")
    if not nodes:
        console.tell("no run was submitted")


def submit(
    state: Path,
    config: Path,
    overrides: Sequence[str],
    asked: str,
    config_dir: Path | None,
    **told: float | str | None,
) -> None:
    """Have the running server run a config at the sites ``asked``; ``told`` is the rest of what
    :meth:`fedshift.runs.submitted.Runs.submit` takes."""
    from fedshift.runs.deploy import sites_own

    console = PlainConsole()
    composed = _composed(config, overrides, config_dir)
    if own := sites_own(composed):
        console.tell(f"each site's own, and not sent: {', '.join(own)}")
    names = [name.strip() for name in asked.split(",") if name.strip()]
    found = control.ask(state, "submit", config=composed, sites=names, **told)
    console.tell(f"run {found['name']} begins; its folder is {found['folder']}")


def stop(state: Path, run: str) -> None:
    """End a run where it stands; say so when that takes longer."""
    found = control.ask(state, "stop", name=run)
    if found == STOPPED:
        told = f"is stopped; `fedshift server resume {run}` goes on with it"
    elif found == GOING:
        told = "is to stop, and still ends what it does; `fedshift server runs` shows when it is"
    else:
        told = f"is {found}: it ended before it was stopped"
    PlainConsole().tell(f"run {run} {told}")


def resume(state: Path, run: str) -> None:
    """Go on with a run."""
    control.ask(state, "resume", name=run)
    PlainConsole().tell(f"run {run} goes on")


def _composed(config: Path, overrides: Sequence[str], config_dir: Path | None) -> dict[str, object]:
    from fedshift.runs.config import from_file

    if not config.is_file():
        raise UserError(
            f"there is no file {config}; name a config, such as the config.yaml of a simulated run"
        )
    return from_file(config, overrides, config_dir)


def _table(columns: Sequence[str]) -> Table:
    table = Table(box=None, header_style="bold", pad_edge=False)
    for column in columns:
        table.add_column(column, overflow="fold")
    return table
