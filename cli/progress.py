"""A long run on the screen: a live bar on a terminal, plain lines elsewhere."""

from __future__ import annotations

import time

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Column

_LINE_EVERY_S = 10.0


class Screen:
    """Watches a run (see :mod:`fedshift.server.progress`); use as a context manager."""

    def __init__(self, console: Console, title: str) -> None:
        self.console = console
        self.title = title
        self._bar = Progress(
            TextColumn(
                "{task.description}", markup=False, table_column=Column(ratio=1, no_wrap=True)
            ),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(compact=True),
            console=console,
            expand=True,
            transient=True,
            disable=not console.is_terminal,
        )
        self._task = self._bar.add_task("opening the sites", total=None)
        self._total = 0
        self._done = 0
        self._start = time.monotonic()
        self._last = self._start

    def __enter__(self) -> Screen:
        self.say(self.title)
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def expect(self, units: int) -> None:
        """Say how many units of work are ahead in all."""
        self._total = units
        self._start = time.monotonic()
        self._bar.reset(self._task, total=units)

    def advance(self, what: str) -> None:
        """Say that one unit is done, and what it was."""
        self._done += 1
        self._bar.update(self._task, advance=1, description=what)
        now = time.monotonic()
        if not self.console.is_terminal and (
            now - self._last > _LINE_EVERY_S or self._done == self._total
        ):
            self._last = now
            left = (now - self._start) / self._done * (self._total - self._done)
            self.console.print(f"{self._done}/{self._total}  {what}  about {left:.0f} s left")

    def say(self, sentence: str) -> None:
        """Print something worth keeping on the screen."""
        self.console.print(sentence)
