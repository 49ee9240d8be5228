"""The runs of a coordinator, each in a thread: submitted, stopped, and gone on with, also after the
coordinator was killed."""

from __future__ import annotations

import itertools
import json
import logging
import threading
from collections.abc import Callable, Sequence
from contextlib import nullcontext, suppress
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from fedshift import UserError
from fedshift.protocol.storage import folder_name, read_json, write_atomic
from fedshift.runs.config import Config
from fedshift.runs.settings import RunSettings, output_folder
from fedshift.runs.watching import Tell
from fedshift.server.fleet.grid import FleetGrid, Stopped
from fedshift.server.fleet.hub import Hub
from fedshift.server.progress import Progress
from fedshift.server.record import read_rounds

log = logging.getLogger("fedshift.server")

_FAREWELL_S = 10.0
"""How long a run that is to stop may take for what it is about, such as drawing its report."""

Deploy = Callable[..., None]
"""Runs a config on a grid, as :func:`fedshift.runs.deploy.deploy` does."""

GOING, DONE, FAILED, STOPPED = "going", "done", "failed", "stopped"


@dataclass(frozen=True)
class Submitted:
    """A run as it was submitted, and what became of it (``state``, and ``why`` in words).

    ``sites`` take part, and are waited for ``wait_s`` seconds, or without an end. ``purpose`` and
    ``asked_by`` are what their staff is shown.
    """

    name: str
    config: Config
    sites: tuple[str, ...]
    wait_s: float | None
    purpose: str
    asked_by: str
    since: str
    state: str = GOING
    why: str = ""


class _Watched(Progress):
    """A run's watcher: remembers how far it is, and tells what is worth keeping."""

    def __init__(self, say: Tell) -> None:
        self.said = say
        self.ahead = self.done = 0
        self.last = ""

    def expect(self, units: int) -> None:
        self.ahead, self.done = units, 0

    def advance(self, what: str) -> None:
        self.done += 1
        self.last = what

    def say(self, sentence: str) -> None:
        self.last = sentence
        self.said(sentence)


@dataclass
class _Going:
    """A run that goes on in a thread."""

    grid: FleetGrid
    watched: _Watched
    thread: threading.Thread = field(default_factory=threading.Thread)
    stopping: str = ""
    """The state in which it is left when it is stopped."""


class Runs:
    """The runs of a coordinator: a record ``NAME.json`` of each in ``runs/``, and beside it the
    run's folder. Each goes on in a thread of its own."""

    def __init__(self, state: Path, hub: Hub, deploy: Deploy, tell: Tell) -> None:
        self._folder = state / "runs"
        self._deploy = deploy
        self._hub = hub
        self._tell = tell
        self._changing = threading.RLock()
        self._going: dict[str, _Going] = {}

    # What the staff asks for

    def submit(
        self,
        config: Config,
        sites: Sequence[str] = (),
        wait_s: float | None = None,
        purpose: str = "",
        asked_by: str = "",
    ) -> dict[str, str]:
        """Begin a run of a composed ``config`` at the ``sites``: those that ``data.sites`` names if
        none are given, else all that are enrolled. The run is called as its ``out`` is.

        Returns its ``name`` and ``folder``; raises :class:`UserError` for what cannot be run.
        """
        # Deferred: what lists runs or stops one needs nothing of what a run does.
        from fedshift.runs.deploy import check_deployable

        RunSettings.from_config(config)
        check_deployable(config)
        enrolled = [peer.name for peer in self._hub.peers]
        sites = tuple(sites) or tuple(config["data"]["sites"]) or tuple(enrolled)
        if not sites:
            raise UserError(
                "no site is enrolled; `fedshift server enroll NAME site.pub` enrols one"
            )
        for name in sites:
            if name not in enrolled:
                raise UserError(
                    f"no site {name!r} is enrolled; `fedshift server sites` lists those that are"
                )
        name = stem = folder_name(output_folder(config).name)
        with self._changing:
            taken = {submitted.name for submitted in self.read()}
            for number in itertools.count(2):
                if name not in taken:
                    break
                name = f"{stem}-{number}"
            config = {**config, "out": str(self._folder / name), "resume": True}
            self._begin(Submitted(name, config, sites, wait_s, purpose, asked_by, _now()))
        return {"name": name, "folder": config["out"]}

    def stop(self, name: str) -> str:
        """End a run where it stands; raises :class:`UserError` for one that does not go on.

        Returns its state then: ``stopped``; ``going`` where it ends later, since what it is about
        takes longer; ``done`` or ``failed`` where it ended by itself meanwhile.
        """
        with self._changing:
            going = self._going.get(self._named(name).name)
        if going is None:
            raise UserError(f"run {name} does not go on: it is {self._named(name).state}")
        self._end(going, STOPPED)
        return self._named(name).state

    def resume(self, name: str) -> None:
        """Go on with a run that was stopped or that failed; raises :class:`UserError` for any
        other."""
        with self._changing:
            submitted = self._named(name)
            if name in self._going or submitted.state not in (STOPPED, FAILED):
                raise UserError(
                    f"run {name} is {submitted.state}: only a run that was stopped or "
                    "failed is resumed"
                )
            self._begin(replace(submitted, state=GOING, why=""))

    def listed(self) -> list[dict[str, Any]]:
        """Of every run: its ``name``, ``state`` and ``why``, the ``round`` it is in of ``rounds``,
        the sites ``awaited``, and its ``folder``."""
        found = []
        for submitted in self.read():
            going = self._going.get(submitted.name)
            folder = Path(submitted.config["out"])
            finished = len(read_rounds(folder)) if folder.is_dir() else 0
            rounds = submitted.config["rounds"]
            found.append(
                {
                    "name": submitted.name,
                    "state": submitted.state,
                    "why": submitted.why,
                    "since": submitted.since,
                    "round": min(finished + (going is not None), rounds),
                    "rounds": rounds,
                    "doing": going.watched.last if going else "",
                    "awaited": going.grid.awaited if going else [],
                    "folder": str(folder),
                }
            )
        return found

    # How they live

    def recover(self) -> None:
        """Go on with the runs that a server which ended, however it did, left going."""
        for submitted in self.read():
            if submitted.state == GOING:
                self._say(submitted.name, "goes on from its last checkpoint")
                self._begin(submitted)

    def close(self) -> None:
        """End all where they stand; the next server goes on with them."""
        ended = [self._end(going, GOING, wait=False) for going in list(self._going.values())]
        for going in ended:
            going.thread.join(_FAREWELL_S)

    def read(self) -> list[Submitted]:
        """All that were submitted, by time; raises :class:`UserError` for a damaged record."""
        found = (
            read_json(path, lambda node: Submitted(**{**node, "sites": tuple(node["sites"])}))
            for path in sorted(self._folder.glob("*.json"))
        )
        return sorted(
            (run for run in found if run is not None), key=lambda run: (run.since, run.name)
        )

    def _named(self, name: str) -> Submitted:
        for submitted in self.read():
            if submitted.name == name:
                return submitted
        raise UserError(f"there is no run {name!r}; `fedshift server runs` lists them")

    def _write(self, submitted: Submitted) -> None:
        text = json.dumps(asdict(submitted), indent=1, ensure_ascii=False)
        write_atomic(self._folder / f"{submitted.name}.json", text + "\n")

    def _begin(self, submitted: Submitted) -> None:
        self._write(submitted)
        watched = _Watched(lambda sentence: self._say(submitted.name, sentence))
        going = _Going(FleetGrid(self._hub), watched)
        going.thread = threading.Thread(
            target=self._run, args=(submitted, going), name=f"run {submitted.name}", daemon=True
        )
        self._going[submitted.name] = going
        going.thread.start()

    def _end(self, going: _Going, state: str, *, wait: bool = True) -> _Going:
        going.stopping = state
        going.grid.stop()
        if wait:
            going.thread.join(_FAREWELL_S)
        return going

    def _run(self, submitted: Submitted, going: _Going) -> None:
        state, why = DONE, ""
        out = Path(submitted.config["out"])
        try:
            with going.grid:
                self._deploy(
                    out,
                    submitted.config,
                    going.grid,
                    going.watched.say,
                    lambda title: nullcontext(going.watched),
                    sites=submitted.sites,
                    wait_s=submitted.wait_s,
                    purpose=submitted.purpose,
                    asked_by=submitted.asked_by,
                )
        except Stopped:
            state = going.stopping
        except UserError as error:
            state, why = FAILED, str(error)
        except Exception as error:
            # One run's fault ends no other, and not the server.
            log.exception("run %s", submitted.name)
            state, why = (
                FAILED,
                f"a fault of fedshift, see the log: {type(error).__name__}: {error}",
            )
        with self._changing:
            del self._going[submitted.name]
            with suppress(UserError):  # The disk may be full, which is what the run failed of.
                self._write(replace(submitted, state=state, why=why))
        if state != GOING:
            self._say(submitted.name, f"is {state}" + (f": {why}" if why else ""))

    def _say(self, name: str, sentence: str) -> None:
        self._tell(f"run {name}: {sentence}")


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds")
