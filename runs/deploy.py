"""A federation of real sites, from a simulation's config to a finished run folder.

What needs the images is done where they are. The coordinator asks the sites what it plans from,
sends them the settings of ``data`` that a run has for all of them, and coordinates the rounds as in
a simulation, of which a deployed run has the bits.
"""

from __future__ import annotations

import json
import re
import secrets
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from fedshift import UserError
from fedshift.client.policy import ERROR_UNAPPROVED
from fedshift.protocol.answers import Unfit, read_details
from fedshift.protocol.flower import Grid, Message
from fedshift.protocol.lock import alone_in
from fedshift.protocol.messages import ERROR_CLOSED, Action, Instruction
from fedshift.protocol.storage import check_links, read_json, write_atomic
from fedshift.protocol.words import some
from fedshift.runs.checking import settle_told
from fedshift.runs.config import Config, shipped
from fedshift.runs.federation import data_settings
from fedshift.runs.folder import open_folder
from fedshift.runs.plugins import own_settings
from fedshift.runs.settings import RunSettings, output_folder
from fedshift.runs.simulate import FOLDS, folds, gone_on_with, in_turn
from fedshift.runs.stored import build_plan
from fedshift.runs.watching import Tell, Watch, silent, unwatched
from fedshift.server import checkpoint, report, tracking
from fedshift.server.app import coordinate
from fedshift.server.federation import Sites, answered, find
from fedshift.server.plan import RunPlan
from fedshift.server.record import IDENTITY, read_cards, read_rounds
from fedshift.sites import Summary, survey
from fedshift.sites.labels import form_of
from fedshift.sites.settings import AUTO, OF_A_RUN
from fedshift.sites.types import Federation, SiteSpec, Table

KIND = "sites"
"""What ``federation.kind`` is in the folder of a deployed run: no table, no phantom."""
_POLL_S = 0.5
_LONGEST_POLL_S = 30.0
"""Each refusal is a line of a site's ledger, and its staff may take days."""
_UNDRAWN = "pictures of images: they could be drawn at the sites alone, which no image leaves"


@dataclass(frozen=True)
class _Deployment:
    """What stays the same over all of the run folders that one config fills."""

    grid: Grid
    names: tuple[str, ...]
    wait_s: float | None
    about: Mapping[str, str]
    tell: Tell
    watch: Watch
    drawn: bool
    told: set[str] = field(default_factory=set)

    def say(self, sentence: str) -> None:
        """Tell it once."""
        if sentence not in self.told:
            self.told.add(sentence)
            self.tell(sentence)

    def pause(self, seconds: float) -> None:
        """Wait so long; a grid whose run can be stopped ends that at once."""
        getattr(self.grid, "pause", time.sleep)(seconds)


def deploy(
    out: Path,
    config: Config,
    grid: Grid,
    tell: Tell = silent,
    watch: Watch = unwatched,
    *,
    sites: Sequence[str] = (),
    wait_s: float | None = None,
    purpose: str = "",
    asked_by: str = "",
    drawn: bool = True,
) -> None:
    """Run a simulation's ``config`` with the real sites behind ``grid``, or go on with it.

    ``sites`` are the names of those that take part (by default ``data.sites``, or else all that are
    there). A site that is not there, whose staff has not approved of the run, or that works at
    other hours, is waited for ``wait_s`` seconds, or without an end. ``purpose`` and ``asked_by``,
    a line of at most 500 characters each, are what the staff is shown. Where the grid has
    ``enrolled``, the name of each node's key, no site can take another's name. With ``drawn`` the
    folder gets its figures and page.

    Raises :class:`UserError` for a config that no real federation can run (``pooled``, vendors left
    out in turn, no ``data.labels``), for a site that did not come before the run began, and as a
    simulation does.
    """
    RunSettings.from_config(config)
    with alone_in(out):
        check_links(out)
        config, before = gone_on_with(out, _deployable(config, out, tell))
        names = tuple(sites) or tuple(config["data"]["sites"])
        about = {"purpose": purpose, "asked_by": asked_by, "strategy": config["strategy"]["name"]}
        about = {key: text for key, text in about.items() if text}
        to = _Deployment(grid, names, wait_s, about, tell, watch, drawn)
        run = identity(out, config)

        def ask(known: Config) -> dict[str, Summary | None]:
            return _summaries(_planned(out, known, run, to), to)

        config = settle_told(config, ask, tell, before)
        if config["protocol"] == "together":
            _fill(out, config, run, to)
            return
        found = _gathered(_planned(out, config, run, to), to)
        unseen = config["data"]["unseen_sites"]
        specs = tuple(SiteSpec(n, (), "unseen" if n in unseen else "train") for n in found)
        turns = folds(config, Federation(config["federation"]["name"], specs, ()))

        def one(fold: Path, changed: Config) -> None:
            _fill(fold, changed, identity(fold, changed), to)

        in_turn(out, config, turns, one, tell)
        if drawn:
            report.build(out)


def check_deployable(config: Config) -> None:
    """Raise :class:`UserError` for a simulation's ``config`` that no real federation can run, as
    :func:`deploy` does, before anything is begun."""
    _parts(_deployable(config, output_folder(config), silent))


def sites_own(config: Config) -> list[str]:
    """The keys of a simulation's ``config`` that were set and are each real site's own, sorted:
    they are not sent, and each site has its own in their place."""
    default = shipped(config)
    own = [
        f"data.{key}"
        for key, value in config["data"].items()
        if key not in (*OF_A_RUN, "sites", "planned") and value != default["data"][key]
    ]
    own += [f"method.{name}" for name, value in own_settings(config).items() if value is not None]
    own += ["federation"] if config["federation"]["kind"] != KIND else []
    for group in ("engine", "policy"):
        own += [group] if config[group] != default.get(group) else []
    return sorted(own)


def identity(out: Path, config: Config) -> str:
    """Under what name the run in ``out`` is known to its sites: drawn once and kept in its folder,
    the same however often the run is begun and gone on with, another for another config."""
    path = out / IDENTITY
    of = checkpoint.lineage(config)
    done = checkpoint.last_round(out / "checkpoints")
    held = read_json(path, lambda node: (str(node["run"]), str(node["of"])))
    if held is not None and (done or held[1] == of):
        return held[0]
    if done:
        raise UserError(
            f"{out} holds a run that was never deployed, or lacks its {IDENTITY}; restore that "
            "from a copy, or choose another out=DIR"
        )
    place = out.absolute()
    # A fold's folder is called after what is left out, which says too little by itself.
    name = f"{place.parents[1].name} {place.name}" if place.parent.name == FOLDS else place.name
    words = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")
    run = f"{words[:40] or 'run'}-{secrets.token_hex(4)}"
    write_atomic(path, json.dumps({"run": run, "of": of}) + "\n")
    return run


def _deployable(config: Config, out: Path, tell: Tell) -> Config:
    """``config`` without what is each site's own and what no real federation can do; tells what
    that is."""
    if config["protocol"] == "leave_one_vendor_out":
        raise UserError(
            "protocol=leave_one_vendor_out is of simulations: which images are of which vendor is "
            "known to each real site alone; take protocol=leave_one_site_out"
        )
    baselines = list(config["baselines"])
    if config["strategy"]["name"] == "pooled" or (
        "pooled" in baselines and baselines != list(RunSettings().baselines)
    ):
        raise UserError(
            "pooled trains on the images of all sites in one place, which no real federation has; "
            "leave it out of baselines, or choose another strategy"
        )
    if "pooled" in baselines:
        baselines.remove("pooled")
        tell("baselines without pooled: no real federation has all images in one place")
    if own := sites_own(config):
        tell(f"each site's own, and not sent: {', '.join(own)}")
    default = shipped(config)["data"]
    data = {
        key: value if key in (*OF_A_RUN, "sites", "planned") else default[key]
        for key, value in config["data"].items()
    }
    federation = config["federation"]
    named = federation["kind"] == "manifest" and federation["name"] != "manifest"
    name = federation["name"] if named or federation["kind"] == KIND else out.absolute().name
    return {
        **config,
        "baselines": baselines,
        "data": data,
        "federation": {"name": name, "kind": KIND},
    }


def _parts(config: Config) -> tuple[str, ...]:
    """The parts of the task; raises :class:`UserError` where only a table could tell them."""
    data = data_settings(config)
    form = form_of(data)
    if data.labels is None and form.says_parts:
        raise UserError(
            f"data.labels is not set, and a coordinator has no table to take each {form.part} "
            "from; write data.labels={NAME: VALUE, ...}, which all sites get"
        )
    return form.parts(Table({}, {}, (), 0), data, survey)


def _planned(out: Path, config: Config, run: str, to: _Deployment) -> RunPlan:
    """The plan of the run as far as the config is settled."""
    data = config["data"]
    unseen = [*data["unseen_sites"], *config.get("left_out", ())]
    asked = {**{key: data[key] for key in OF_A_RUN}, "unseen_sites": unseen}
    return replace(
        build_plan(out, config, _parts(config), checkpoint.lineage(config)),
        run=run,
        # What is not set is what a site does by itself, and needs no right to be asked for.
        data={key: value for key, value in asked.items() if value not in (None, [], {}, AUTO)},
        about=to.about,
        sites=to.names,
        told=(Action.SUMMARY,) if data["planned"] else (),
    )


def _fill(out: Path, config: Config, run: str, to: _Deployment) -> None:
    """Fill one run folder, or what is left of it."""
    plan = _planned(out, config, run, to)
    tracking.check(plan.tracking)
    open_folder(out, config, to.tell)
    if (out / "cross_site.csv").exists():
        to.tell(f"{out} is finished; drawing its report again")
        with tracking.opened(out, plan.tracking, read_rounds(out)):
            pass  # A sink that is asked for afterwards gets the whole run.
    else:
        write_atomic(plan.checkpoints / "findings.json", "[]\n")
        cards = read_cards(plan.checkpoints / "sites.json")
        if cards is None:
            nodes = _gathered(plan, to)
            # Who is not approved by then is left out and named.
            _asked(Sites(to.grid, nodes, {}, plan.deadline_s), plan.instruction, Action.CARD, to)
        else:
            plan = replace(plan, sites=tuple(card.name for card in cards))
            _gathered(plan, to, begun=True)
        title = f"{config['federation']['name']}, {config['method']['name']}, "
        with to.watch(title + config["strategy"]["name"]) as progress:
            coordinate(to.grid, plan, progress)
    if to.drawn:
        write_atomic(out / "figures" / "undrawn.json", json.dumps([_UNDRAWN]) + "\n")
        report.build(out)


def _gathered(plan: RunPlan, to: _Deployment, *, begun: bool = False) -> dict[str, int]:
    """The node of each site that takes part, by name, once all that are expected are there.

    When ``wait_s`` is over, a run that has ``begun`` goes on without who is away; otherwise that
    raises :class:`UserError`."""
    clock = _Clock(to.wait_s)
    seen: set[int] | None = None
    nodes: dict[str, int] = {}
    problems: list[str] = []
    while True:
        if (there := {*to.grid.get_node_ids()}) != seen:
            seen = there
            nodes, problems = find(
                to.grid, plan.instruction, deadline_s=plan.deadline_s, names=plan.sites
            )
        missing = [name for name in plan.sites if name not in nodes]
        if nodes and not missing:
            return nodes
        if clock.over:
            break
        to.say(f"waiting for {some(missing) if missing else 'a site'}")
        to.pause(_POLL_S)
    if begun:
        return nodes
    because = f" ({problems[0]})" if problems else ""
    raise UserError(
        f"{some(missing) if missing else 'no site'} did not come within {to.wait_s:g} s{because}; "
        "start the agent there, or name the sites that take part without it"
    )


def _asked(
    sites: Sites, instruction: Instruction, action: Action, to: _Deployment
) -> dict[str, Message]:
    """What the sites answer, by name, once nobody's approval or working hours are waited for any
    more."""
    clock, pause = _Clock(to.wait_s), _POLL_S
    replies: dict[str, Message] = {}
    waiting = sites.scored
    while waiting:
        replies.update(sites.ask(waiting, instruction.but(action=action)))
        unapproved = [name for name in waiting if _says(replies[name], ERROR_UNAPPROVED)]
        closed = [name for name in waiting if _says(replies[name], ERROR_CLOSED)]
        waiting = sorted({*unapproved, *closed})
        if clock.over:
            break
        for name in closed:
            to.say(f"waiting for the hours of {name}: {replies[name].error.reason}")
        if unapproved:
            to.say(
                f"waiting for approval at {some(unapproved)}: fedshift client approve "
                f"{instruction.run}"
            )
        if waiting:
            to.pause(pause)
            pause = min(2 * pause, _LONGEST_POLL_S)
    return replies


def _says(reply: Message, code: int) -> bool:
    """Whether that is an error answer with that code."""
    return bool(reply.has_error() and reply.error.code == code)


def _summaries(plan: RunPlan, to: _Deployment) -> dict[str, Summary | None]:
    """What each site tells of its images; None where it tells nothing, and why is told. Raises
    :class:`UserError` for one whose approval or working hours did not come in time."""
    sites = Sites(to.grid, _gathered(plan, to), {}, plan.deadline_s)
    replies = sorted(_asked(sites, plan.instruction, Action.SUMMARY, to).items())
    shut = [
        f"{name}: {reply.error.reason}"
        for name, reply in replies
        if _says(reply, ERROR_CLOSED) or _says(reply, ERROR_UNAPPROVED)
    ]
    if shut:
        raise UserError(
            f"not let in within {to.wait_s:g} s at {'; '.join(shut)}; wait longer with --wait, or "
            "name the sites that take part without it"
        )
    found: dict[str, Summary | None] = {}
    for name, reply in replies:
        found[name] = None
        try:
            found[name] = Summary.from_json(read_details(answered(reply)))
        except (Unfit, ValueError) as fault:
            to.say(f"site {name} tells nothing of its images: {fault}")
    return found


class _Clock:
    """Says when so many seconds are over; None: never."""

    def __init__(self, seconds: float | None) -> None:
        self._end = None if seconds is None else time.monotonic() + seconds

    @property
    def over(self) -> bool:
        """Whether they are."""
        return self._end is not None and time.monotonic() >= self._end
