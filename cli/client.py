"""``fedshift client``: a site's agent, and what the site's own staff asks of it."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from itertools import chain
from pathlib import Path
from typing import Any

import typer
import yaml
from rich.table import Table

from fedshift import UserError
from fedshift.cli.console import PlainConsole
from fedshift.client.agent import doctor, status
from fedshift.client.agent.agent import Status
from fedshift.client.agent.connection import Address
from fedshift.client.agent.folder import Approval, Described, StateFolder, own_settings
from fedshift.client.agent.keys import make_key
from fedshift.client.agent.options import DEPLOYED, SiteOptions, policy_of
from fedshift.client.agent.run import run_site
from fedshift.client.ledger import verify
from fedshift.client.methods import METHODS
from fedshift.client.pseudonyms import resolve
from fedshift.client.rules import RULES
from fedshift.protocol.registry import Registry
from fedshift.protocol.settings import suggest
from fedshift.runs.checking import examine as examine_sites
from fedshift.runs.checking import sentences
from fedshift.runs.config import load
from fedshift.strategies import STRATEGIES


def site_options(
    name: str, data: Path, policy: Path | None, settings: Sequence[str], device: str, threads: int
) -> SiteOptions:
    """What the command line says of a site, checked; raises :class:`UserError`."""
    more: dict[str, Any] = {}
    own: dict[str, Any] = {}
    for setting in settings:
        key, equals, text = setting.partition("=")
        node, _, leaf = key.partition(".")
        if not equals or node not in ("data", "method") or not leaf:
            raise UserError(
                f"--set {setting} is no setting of the site: give data.KEY=VALUE, or a file of a "
                "method as method.KEY=FILE"
            )
        try:
            value = yaml.safe_load(text)
        except yaml.YAMLError as error:
            raise UserError(f"--set {setting}: the value cannot be read") from error
        place = more if node == "data" else own
        *above, last = leaf.split(".")
        for part in above:
            place = place.setdefault(part, {})
        place[last] = value
    return SiteOptions(name, own_settings(data, **more), policy_of(policy), own, device, threads)


def run(options: SiteOptions, address: Address, state: Path) -> None:
    """Serve a coordinator until this is ended."""
    doctor.split(address.server)
    console = PlainConsole()
    console.warn(_unknown_names(options.policy))
    run_site(options, address, state, console.tell)


def _unknown_names(policy: Mapping[str, Any]) -> Iterator[str]:
    """A sentence for each name of a policy's lists that is nothing's here; no error, as what it
    names may be installed later."""
    registries: tuple[tuple[str, Registry[Any]], ...] = (
        ("methods", METHODS),
        ("rules", RULES),
        ("strategies", STRATEGIES),
    )
    for key, registry in registries:
        known = registry.names()
        for name in policy.get(key, ()):
            # Flower's strategies, which begin with a capital, need not be installed at a site.
            flower = registry is STRATEGIES and name[:1].isupper()
            if name != "*" and name not in known and not flower:
                yield (
                    f"policy.{key} names {name!r}, and no {registry.kind} of this name is "
                    f"installed here{suggest(name, known)}"
                )


def print_policy() -> None:
    """Print the commented policy that a site begins with."""
    typer.echo(DEPLOYED.read_text(encoding="utf-8"), nl=False)


def key(private: Path) -> None:
    """Make the site's key."""
    public = private.with_suffix(".pub")
    make_key(private, public)
    console = PlainConsole()
    console.tell(f"{private} is the site's key; it stays here")
    console.tell(f"{public} goes to the coordinator: fedshift server enroll NAME {public.name}")


def who(code: str, state: Path) -> None:
    """Print the subject or case that ``code`` stands for at the site with that ``state``."""
    PlainConsole().tell(resolve(state, code))


def examine(options: SiteOptions | None, address: Address, state: Path) -> None:
    """Look at all that may be wrong; exit with 2 when something is."""
    console = PlainConsole()
    worst = "ok"
    checks = doctor.examine(address, state)
    for check in checks if options is None else chain(checks, _of_site(options)):
        style = {"ok": "green", "warning": "yellow", "error": "red"}[check.level]
        console.print(f"{check.level:8}", style=style, end="")
        console.print(f"{check.name:12} {check.told}", soft_wrap=True)
        worst = max(worst, check.level, key=("ok", "warning", "error").index)
    if worst == "error":
        raise typer.Exit(2)


def _of_site(options: SiteOptions) -> Iterator[doctor.Check]:
    """What is wrong with the site's policy, device and images; the first was read before."""
    yield doctor.Check("policy", "ok", "can be read, and has no key that is unknown")
    for sentence in _unknown_names(options.policy):
        yield doctor.Check("policy", "warning", sentence)
    yield _device(options.device)
    config = load(["federation=manifest", "policy=deployed"])
    config["data"].update(options.data)
    try:
        found = examine_sites(config)
    except UserError as error:
        yield doctor.Check("data", "error", str(error))
        return
    for sentence in sentences(found):
        level, _, told = sentence.partition(" ")
        yield doctor.Check("data", level, told)
    images = sum(len(site.images) for site in found.federation.sites)
    yield doctor.Check("data", "ok", f"{images} images were looked at")


def _device(device: str) -> doctor.Check:
    import torch

    there = torch.cuda.is_available()
    if device == "cpu" or (device == "auto" and not there):
        return doctor.Check("device", "ok", "trains on the CPU")
    if not there:
        return doctor.Check("device", "error", f"{device}: no GPU can be used; mend its driver")
    free, _ = torch.cuda.mem_get_info()
    name = torch.cuda.get_device_name()
    return doctor.Check("device", "ok", f"{name}, {free / 1e9:.0f} GB free")


def show_status(state: Path, *, as_json: bool) -> None:
    """Print what the agent does and which runs there are; exit with 0 when it is in contact, 3 when
    it runs and is not, 4 when it does not run."""
    import json
    from dataclasses import asdict

    found = status.read(state)
    runs = StateFolder.opened(state).runs()
    if as_json:
        agent = None if found is None else asdict(found)
        told = {"agent": agent, "runs": [{**vars(r), "described": vars(r.described)} for r in runs]}
        typer.echo(json.dumps(told, indent=1))
    else:
        _tell_status(found, runs, state)
    if found is None or found.state == "ended":
        raise typer.Exit(4)
    if found.problem or found.state != "connected":
        raise typer.Exit(3)


def _tell_status(found: Status | None, runs: Sequence[Any], state: Path) -> None:
    console = PlainConsole()
    if found is None:
        console.tell(f"no agent ever ran on {state}")
    else:
        console.tell(
            f"agent: {found.state}{f', answering {found.working}' if found.working else ''}"
        )
        if found.problem:
            console.tell(f"problem: {found.problem}")
        if found.contact:
            console.tell(f"last contact {time.time() - found.contact:.0f} s ago")
        unfetched = f"{found.refused} not fetched (see agent.log), " if found.refused else ""
        console.tell(
            f"{found.answered} messages answered, {unfetched}"
            f"{found.bytes_in / 1e6:.1f} MB in, {found.bytes_out / 1e6:.1f} MB out since it began"
        )
    table = Table()
    for column in ("run", "state", "round", "MB out", "refusals", "last asked", "purpose"):
        right = column in ("round", "MB out", "refusals")
        table.add_column(column, justify="right" if right else "left")
    for one in runs:
        asked = datetime.fromtimestamp(one.contact, UTC) if one.contact else None
        table.add_row(
            one.run,
            one.state,
            str(one.round),
            f"{one.bytes_out / 1e6:.1f}",
            str(one.refusals),
            f"{asked:%Y-%m-%d %H:%M} UTC" if asked else "",
            one.described.purpose,
        )
    if runs:
        console.print(table)


def approve(run: str, state: Path, *, yes: bool) -> None:
    """Show what a run asks for, and let it in when somebody says so."""
    folder = StateFolder.opened(state)
    console = PlainConsole()
    waiting = folder.waiting()
    if run in waiting:
        _show(console, run, waiting[run])
        if not yes and not typer.confirm("Let it in?", default=False):
            console.tell("it stays refused")
            raise typer.Exit(1)
    folder.approve(run)
    console.tell(f"{run} is let in from its next request on")


def _show(console: PlainConsole, run: str, shown: Approval) -> None:
    described: Described = shown.described
    table = Table(title=f"run {run}", title_justify="left", show_header=False)
    for name, text in (
        ("who asks", described.asked_by or "not said"),
        ("purpose", described.purpose or "not said"),
        ("method", described.method),
        ("strategy", described.strategy or "not said"),
        ("task", f"{described.task}: {', '.join(described.labels)}"),
        ("rounds", str(described.rounds)),
        ("may leave", ", ".join(shown.leaves)),
    ):
        table.add_row(name, text)
    console.print(table)


def leave(run: str, state: Path, *, purge: bool) -> None:
    """Refuse a run from now on; with ``purge`` remove its state, too."""
    StateFolder.opened(state).leave(run, purge=purge)
    more = " and what it kept here is removed" if purge else ""
    PlainConsole().tell(f"{run} is refused from now on{more}; what left stays in the ledger")


def forget(subject: str, state: Path) -> None:
    """Leave a subject out from now on; say which models had it."""
    found = StateFolder.opened(state).forget(subject)
    console = PlainConsole()
    console.tell(f"{subject} is left out of every run from now on")
    for name, arms in found.models.items():
        for arm, rounds in arms.items():
            told = (
                f"rounds {rounds[0]} to {rounds[-1]}" if len(rounds) > 1 else f"round {rounds[0]}"
            )
            console.tell(f"run {name}, {arm} model: trained with it in {told}")
    if not found.models:
        console.tell("no model was trained with it")


def model(run: str, out: Path, state: Path) -> None:
    """Write the model of a run, and the site's own one, into a folder."""
    told = StateFolder.opened(state).run(run).export(out)
    own = " and personal.safetensors" if told["personal"] else ""
    PlainConsole().tell(f"{out} holds global.safetensors{own} as of round {told['round']}")


def check_ledger(state: Path) -> None:
    """Follow the chain of the site's ledger."""
    found = verify(StateFolder.opened(state).ledger)
    PlainConsole().tell(
        f"the ledger is unbroken: {found.lines} lines, {found.torn} of them cut short by a crash; "
        f"its head is {found.head}"
    )
