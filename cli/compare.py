"""``fedshift compare``: a grid of runs and what they show, on the screen."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from fedshift.cli.board import Board
from fedshift.cli.console import PlainConsole
from fedshift.protocol.words import count
from fedshift.runs.compare import compare as run
from fedshift.runs.sweep import Sweep
from fedshift.server import comparison


def compare(overrides: Sequence[str], config_dir: Path | None = None) -> None:
    """Run and compare the cells of the grid; print the comparison and what failed."""
    console = PlainConsole()
    sweep = Sweep.parse(overrides, config_dir)
    result = run(sweep, console.tell, partial(Board, console))
    console.print(comparison.summary(result, sweep.out))
    cells = result.comparison.cells
    failed = Counter(cell.error for cell in cells if cell.status == "failed")
    for error, times in failed.items():
        console.tell(f"{count(times, 'cell')} failed: {error}")
