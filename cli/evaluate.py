"""``fedshift evaluate``: a finished run's models scored again, on the screen."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path

from fedshift.cli.console import PlainConsole
from fedshift.cli.progress import Screen
from fedshift.runs.evaluate import evaluate as score
from fedshift.server import report


def evaluate(
    run: Path,
    overrides: Sequence[str],
    manifest: Path | None,
    name: str | None,
    config_dir: Path | None,
    *,
    trusted: bool,
) -> None:
    """Score the models of ``run``; print the summary."""
    console = PlainConsole()
    watch = partial(Screen, console)
    folder = score(run, overrides, manifest, name, config_dir, console.tell, watch, trusted=trusted)
    console.print(report.summary(folder))
