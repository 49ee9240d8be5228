"""A grid of simulated runs, packed onto this machine, and what they show."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import Any, Literal, Protocol

from fedshift import UserError
from fedshift.protocol.lock import alone_in
from fedshift.protocol.storage import check_links, write_atomic
from fedshift.protocol.words import count
from fedshift.runs import provenance
from fedshift.runs import sweep as sweeps
from fedshift.runs.cells import FAILURE, OpenSite, RunCell
from fedshift.runs.earlier import complete
from fedshift.runs.pool import Event, Pool, places
from fedshift.runs.settings import EngineSettings
from fedshift.runs.stored import read_config
from fedshift.runs.sweep import SWEEP, PlannedCell, Sweep, read_sweep
from fedshift.runs.watching import Tell, silent
from fedshift.server import checkpoint, comparison
from fedshift.server.comparison.cells import Cell
from fedshift.server.record import rounds_of, untrained
from fedshift.server.report.run import read_run


class Board(Protocol):
    """Shows how far the cells are, by their number in the grid."""

    def show(self, number: int, event: Event[Any]) -> None:
        """Show what happened to cell ``number``."""

    def say(self, sentence: str) -> None:
        """Tell something worth keeping on the screen."""


OpenBoard = Callable[[Sequence[Cell], Callable[[int], float]], AbstractContextManager[Board]]
"""Opens a board for these cells; the callable says how much work a cell is, in any unit."""


class _NoBoard:
    """Nobody looks."""

    def show(self, number: int, event: Event[Any]) -> None:
        """Ignore."""

    def say(self, sentence: str) -> None:
        """Ignore."""


def _unshown(
    cells: Sequence[Cell], weight: Callable[[int], float]
) -> AbstractContextManager[Board]:
    return nullcontext(_NoBoard())


def compare(
    sweep: Sweep,
    tell: Tell = silent,
    board: OpenBoard = _unshown,
    task: type[RunCell] = RunCell,
) -> comparison.Result:
    """Run what is left of the grid and compare its cells. ``task`` is what a cell is run as.

    Raises :class:`UserError` for a wrong option in any cell, before anything is run, and when
    every cell failed.
    """
    out = sweep.out
    prepared = sweeps.prepare(sweep, tell)
    if target := sweeps.target_for(sweep, prepared):
        sweep, prepared = sweeps.hide_labels(sweep, prepared, target)
        tell(
            f"A method of the grid adapts to sites without labels, and all have some: those of "
            f"{target} are hidden in every cell. To hide others: data.unlabelled_sites=[...]"
        )
    devices = _places(sweep, prepared)
    with alone_in(out):
        check_links(out)
        _open(out, sweep, prepared)
        complete(out)
        _tell_old(prepared, tell)
        cells = run_cells(prepared, devices, board, task)
        failed = [cell for cell in cells if cell.status == "failed"]
        if len(failed) == len(cells):
            raise UserError(f"no cell could be run; the first failed: {failed[0].error}")
        return comparison.build(out, cells, baseline=sweep.baseline(cells), hours=sweep.hours)


# The folder.


def _open(out: Path, sweep: Sweep, prepared: Sequence[PlannedCell]) -> None:
    """Make ``out`` ready for the grid; cells of an earlier grid that are in it keep their results.

    Raises :class:`UserError` when ``out`` holds something else, which is left as it is.
    """
    stored = out / SWEEP
    if stored.exists():
        _check_fixed(out, sweep)
        _adopt(out / "cells", prepared)
    elif any(out.iterdir()):
        raise UserError(f"{out} is not empty and holds no comparison; choose another out=DIR")
    write_atomic(stored, sweep.to_json())


def _check_fixed(out: Path, sweep: Sweep) -> None:
    """Raise :class:`UserError` unless the options that both grids hold fixed are equal."""
    earlier = read_sweep(out)
    fixed, axes = earlier["fixed"], earlier["axes"]
    keys = (fixed.keys() | sweep.fixed.keys()) - axes.keys() - sweep.axes.keys() - {"data.cache"}
    changed = sorted(key for key in keys if fixed.get(key) != sweep.fixed.get(key))
    if changed:
        raise UserError(
            f"{out} holds a comparison with other options ({', '.join(changed)}); repeat "
            "them or choose another out=DIR"
        )


def _adopt(folder: Path, prepared: Sequence[PlannedCell]) -> None:
    """Give a run its cell's new name: with another axis in the grid, the same run has another."""
    wanted = {one.identity: one.cell.folder for one in prepared if not one.cell.folder.exists()}
    names = {one.cell.folder for one in prepared}
    for config in sorted(folder.glob("*/config.yaml")) if wanted else []:
        if config.parent not in names:
            place = wanted.pop(checkpoint.fingerprint(read_config(config)), None)
            if place is not None:
                config.parent.rename(place)


def _status(one: PlannedCell) -> Literal["done", "left"]:
    """Whether the cell's folder holds all of this run's results; ``cross_site.csv`` comes last."""
    folder = one.cell.folder
    done = (
        (folder / "cross_site.csv").exists()
        and checkpoint.fingerprint(read_config(folder / "config.yaml")) == one.identity
        and not untrained(folder)
    )
    return "done" if done else "left"


def _tell_old(prepared: Sequence[PlannedCell], tell: Tell) -> None:
    """Say of finished cells that were made with other versions that they stand."""
    done = [one.cell.folder for one in prepared if _status(one) == "done"]
    old = [others for folder in done if (others := provenance.differing(folder))]
    for others, times in Counter(old).items():
        stand = "stands as it was made" if times == 1 else "stand as they were made"
        tell(f"{count(times, 'finished cell')} {stand}: {others}")


# The work.


def _places(sweep: Sweep, prepared: Sequence[PlannedCell]) -> list[str]:
    """The device of each worker."""
    devices = sweep.own.get("engine.devices", "auto").strip("'\"")
    engines = [EngineSettings.from_config(one.config) for one in prepared]
    threads = max(engine.threads for engine in engines)
    return places(devices, engines[0].most_workers, threads, len(prepared))


class Schedule:
    """Which of the cells that are left comes next, and how long each will take.

    Entrants take turns until one cell of each is done. From then on the ones that take longest
    come first, so that no worker is idle at the end.
    """

    def __init__(self, prepared: Sequence[PlannedCell]) -> None:
        self._prepared = prepared
        self._waiting = set(range(len(prepared)))
        self._begun: Counter[str] = Counter()
        self._measured: dict[str, float] = {}
        self._pace = 1.0

    def learn(self, number: int) -> None:
        """Take it that the cell is done, and how long its training took."""
        self._waiting.discard(number)
        one = self._prepared[number]
        lines = chain.from_iterable(rounds_of(one.cell.folder))
        self._measured[one.cell.entrant] = sum(line["seconds"] for line in lines)
        known = [one for one in self._prepared if one.cell.entrant in self._measured]
        seconds = sum(self._measured[one.cell.entrant] for one in known)
        self._pace = seconds / sum(one.work for one in known)

    def expected(self, number: int) -> float:
        """How long the cell's training takes: in seconds or, as long as nothing is measured, in
        steps."""
        one = self._prepared[number]
        return self._measured.get(one.cell.entrant, self._pace * one.work)

    def next(self) -> int | None:
        """The number of the cell to begin now; None when none is left."""
        if not self._waiting:
            return None
        number = max(self._waiting, key=self._urgency)
        self._waiting.discard(number)
        self._begun[self._prepared[number].cell.entrant] += 1
        return number

    def _urgency(self, number: int) -> tuple[float, ...]:
        entrant = self._prepared[number].cell.entrant
        unknown = entrant not in self._measured
        turns = self._begun[entrant] if unknown else 0
        return unknown, -turns, self.expected(number), -number


def run_cells(
    prepared: Sequence[PlannedCell],
    devices: Sequence[str],
    board: OpenBoard,
    task: type[RunCell],
) -> list[Cell]:
    """Run the cells that are not finished, on a worker for each of ``devices``, as ``task``; what
    their sites need is prepared first. Returns all cells as they stand then."""
    cells = [replace(one.cell, status=_status(one)) for one in prepared]
    schedule = Schedule(prepared)
    for number, cell in enumerate(cells):
        if cell.status == "done":
            schedule.learn(number)
    left = [one for one, cell in zip(prepared, cells, strict=True) if cell.status == "left"]
    if not left:
        return cells

    def pick() -> RunCell | None:
        number = schedule.next()
        if number is None:
            return None
        one = prepared[number]
        return task(number, one.cell.folder, one.config, one.folds)

    with Pool(devices[: len(left)]) as pool, board(cells, schedule.expected) as shown:
        sites = iter(_sites(left))
        for _ in pool.run(lambda: next(sites, None)):
            pass  # The cells that need a site which cannot be opened will say so.
        for event in pool.run(pick):
            number = event.task.number
            shown.show(number, event)
            if event.kind == "done":
                cells[number] = replace(cells[number], status="done")
                schedule.learn(number)
                for problem in _problems(cells[number].folder):
                    shown.say(f"  {problem}")
            elif event.kind == "failed":
                cells[number] = replace(cells[number], status="failed", error=event.text)
                reason = f"{event.text}\n\n{event.trace}".strip() + "\n"
                write_atomic(cells[number].folder / FAILURE, reason)
    return cells


def _sites(left: Sequence[PlannedCell]) -> list[OpenSite]:
    """What opens each site of these cells once; seeds may share images, and folds do."""
    found: dict[str, OpenSite] = {}
    for one in left:
        for site in one.federation.sites:
            structures, seed = one.federation.parts, one.config["seed"]
            found.setdefault(
                repr((site.images, structures, one.data)),
                OpenSite(site, structures, one.data, seed),
            )
    return list(found.values())


def _problems(folder: Path) -> list[str]:
    """What failed or was rejected in a cell, a sentence each."""
    return [
        f"{problem.site} {problem.kind} {count(len(problem.rounds), 'time')}: {problem.reason}"
        for problem in read_run(folder).problems
    ]
