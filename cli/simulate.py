"""``fedshift simulate``: a run and its summary on the screen."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path

from fedshift.cli.console import PlainConsole
from fedshift.cli.progress import Screen
from fedshift.runs.config import load
from fedshift.runs.simulate import simulate as run
from fedshift.server import report


def simulate(overrides: Sequence[str], config_dir: Path | None = None) -> None:
    """Train, score and report; print the summary."""
    console = PlainConsole()
    out = run(load(overrides, config_dir), console.tell, partial(Screen, console))
    console.print(report.summary(out))
