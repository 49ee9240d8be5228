"""The cells of a comparison on the screen: a live table on a terminal, plain lines elsewhere."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from fedshift.runs.pool import Event
from fedshift.server.comparison.cells import Cell

_MOST_RUNNING = 8
"""More lines of what is running tell nobody anything."""


@dataclass
class _Progress:
    """How far a cell is: the ``share`` of it that is done, what is ``on``, and since when."""

    cell: Cell
    state: Literal["waiting", "running", "done", "failed"]
    share: float = 0.0
    on: str = ""
    since: float = 0.0


class Board:
    """Shows ``cells``, by their number in the grid; use as a context manager.

    ``weight`` says how much work a cell is, by its number, in any unit.
    """

    def __init__(
        self, console: Console, cells: Sequence[Cell], weight: Callable[[int], float]
    ) -> None:
        self.console = console
        self._cells = [
            _Progress(cell, "done", 1.0) if cell.status == "done" else _Progress(cell, "waiting")
            for cell in cells
        ]
        self._weight = weight
        self._finished_before = {
            number for number, cell in enumerate(cells) if cell.status == "done"
        }
        self._start = time.monotonic()
        self._live = Live(
            get_renderable=self._table,
            console=console,
            refresh_per_second=4,
            transient=True,
            auto_refresh=console.is_terminal,
        )

    def __enter__(self) -> Board:
        self._start = time.monotonic()
        if self.console.is_terminal:
            self._live.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._live.stop()
        if kind in (KeyboardInterrupt, SystemExit):  # Ctrl-C and SIGTERM
            self.say(f"stopped: {self.counts()}")

    def say(self, sentence: str) -> None:
        """Print something worth keeping on the screen."""
        self.console.print(sentence, soft_wrap=True)

    def show(self, number: int, event: Event[Any]) -> None:
        """Show what happened to cell ``number``."""
        one = self._cells[number]
        if event.kind in ("began", "progress"):
            one.since = time.monotonic() if event.kind == "began" else one.since
            one.state, one.share, one.on = "running", event.share, event.text
            return
        one.state, one.share = "done" if event.kind == "done" else "failed", 1.0
        took = f"done in {_span(time.monotonic() - one.since)}"
        self.say(
            f"{self._settled()}/{len(self._cells)}  {_name(one.cell)}: "
            f"{took if one.state == 'done' else f'failed: {event.text}'}{self._left()}"
        )

    def _settled(self) -> int:
        return sum(one.state in ("done", "failed") for one in self._cells)

    def counts(self) -> str:
        """How many cells are in which state, in words."""
        states = [one.state for one in self._cells]
        told = [f"{states.count('done')} of {len(states)} cells done"]
        told += [
            f"{states.count(state)} {state}"
            for state in ("running", "failed", "waiting")
            if state in states
        ]
        return ", ".join(told)

    def _left(self) -> str:
        """How long the rest will take if it goes on as since the start; empty when unknown."""
        whole = done = 0.0
        for number, one in enumerate(self._cells):
            if number not in self._finished_before:
                whole += self._weight(number)
                done += one.share * self._weight(number)
        if done <= 0 or self._settled() == len(self._cells):
            return ""
        elapsed = time.monotonic() - self._start
        return f"; about {_span(elapsed * (whole - done) / done)} left"

    def _table(self) -> RenderableType:
        """One row an entrant, one column a seed, and a line for each cell that is running."""
        axes = [key for key in self._cells[0].cell.settings if key != "seed"]
        seeds = list(dict.fromkeys(one.cell.seed for one in self._cells))
        table = Table(box=None, padding=(0, 2, 0, 0))
        for key in axes:
            table.add_column(key, no_wrap=True)
        for seed in seeds:
            table.add_column(f"seed {seed}" if seed else "", justify="right", no_wrap=True)
        rows: dict[str, dict[str, _Progress]] = {}
        for one in self._cells:
            rows.setdefault(one.cell.entrant, {})[one.cell.seed] = one
        room = self.console.height - _MOST_RUNNING - 5
        if len(rows) > room:  # What is settled has been said above the table.
            rows = {
                entrant: row
                for entrant, row in rows.items()
                if any(one.state in ("running", "waiting") for one in row.values())
            }
        for row in list(rows.values())[: max(1, room)]:
            first = next(iter(row.values()))
            table.add_row(
                *(Text(first.cell.settings[key]) for key in axes),
                *(_mark(row[seed]) for seed in seeds),
            )
        running = [one for one in self._cells if one.state == "running"]
        lines = [
            Text(f"{_name(one.cell)}: {one.on}", style="dim", overflow="ellipsis", no_wrap=True)
            for one in running[:_MOST_RUNNING]
        ]
        elapsed = _span(time.monotonic() - self._start)
        return Group(table, *lines, Text(f"{self.counts()}; {elapsed} so far{self._left()}"))


def _mark(one: _Progress) -> Text:
    if one.state == "running":
        return Text(f"{one.share:.0%}", style="bold")
    style = {"done": "green", "failed": "red", "waiting": "dim"}[one.state]
    return Text(one.state, style=style)


def _name(cell: Cell) -> str:
    return " ".join(f"{key}={value}" for key, value in cell.settings.items()) or "the only cell"


def _span(seconds: float) -> str:
    """A duration in the two largest units that matter."""
    whole = round(seconds)
    if whole < 100:
        return f"{whole} s"
    minutes, rest = divmod(whole, 60)
    hours, minutes_left = divmod(minutes, 60)
    return f"{hours} h {minutes_left} min" if hours else f"{minutes} min {rest} s"
